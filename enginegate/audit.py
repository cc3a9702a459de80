"""The audit trail as a fold over facts: what each fact looks like to a reader. Pure."""

from typing import Any

from msgspec import Struct

from enginegate import facts as f
from enginegate.model import Outcome


class Entry(Struct, gc=False, frozen=True, kw_only=True):
    """One line of the audit trail; `id` is the fact's number and only grows."""

    id: int
    at_ms: int
    action: str
    actor: str
    outcome: Outcome
    product_id: str | None = None
    user_id: str | None = None
    engine_id: str | None = None
    metadata: dict[str, Any]
    duration_ms: float | None = None


ACTIONS: dict[type[f.Fact], str] = {
    f.ProductRegistered: "policy_register",
    f.PolicyChanged: "policy_update",
    f.PlatformKeyRotated: "rotate_platform_key",
    f.ProductDeleted: "product_delete",
    f.Claimed: "provision",
    f.Slept: "sleep",
    f.Deepened: "sleep",
    f.Woken: "wake",
    f.Stopped: "stop",
    f.StopFailed: "stop",
    f.RestartBegun: "auto_restart_start",
    f.RestartFailed: "auto_restart_failed",
    f.RestartsGivenUp: "auto_restart_gave_up",
    f.KeyRotated: "rotate_key",
    f.KeyRotationFailed: "rotate_key",
    f.Destroyed: "destroy",
}
_BOOT_ACTIONS = {"provision": "provision", "start": "start", "auto_restart": "auto_restart_success"}
_FAIL_ACTIONS = {
    "provision": "provision",
    "start": "start",
    "wake": "wake",
    "running": "health_failed",
    "outage": "health_failed",
}
_FAILURES = (f.Failed, f.StopFailed, f.RestartFailed, f.RestartsGivenUp, f.KeyRotationFailed)

NOTED_ACTIONS = frozenset(
    {
        "provision",
        "start",
        "stop",
        "sleep",
        "wake",
        "destroy",
        "rotate_key",
        "health_check",
        "restarts_suspended",
        "admit_denied",
        "sleep_vetoed",
        "adopt",
        "orphan_removed",
        "recovered",
    }
)
"""Actions that a `Noted` may carry: refusals, failures that change no state, and findings."""

ALL_ACTIONS = (
    frozenset(ACTIONS.values())
    | frozenset(_BOOT_ACTIONS.values())
    | frozenset(_FAIL_ACTIONS.values())
    | NOTED_ACTIONS
)


def action_of(fact: f.AnyFact) -> str | None:
    """Return the fact's action; None for an intent, whose outcome is the entry."""
    if isinstance(fact, f.Noted):
        return fact.action
    if isinstance(fact, f.Booted):
        return _BOOT_ACTIONS[fact.via]
    if isinstance(fact, f.Failed):
        return _FAIL_ACTIONS[fact.during]
    return ACTIONS.get(type(fact))


def entry(number: int, fact: f.AnyFact) -> Entry | None:
    """Return the fact's entry, or None for an intent."""
    action = action_of(fact)
    if action is None:
        return None
    return Entry(
        id=number,
        at_ms=fact.at_ms,
        action=action,
        actor=fact.actor,
        outcome=_outcome(fact),
        product_id=getattr(fact, "product_id", None),
        user_id=getattr(fact, "user_id", None),
        engine_id=getattr(fact, "engine_id", None),
        metadata=_told(fact),
        duration_ms=fact.duration_ms,
    )


def _outcome(fact: f.AnyFact) -> Outcome:
    if isinstance(fact, f.Noted):
        return fact.outcome
    return Outcome.FAILED if isinstance(fact, _FAILURES) else Outcome.OK


def _told(fact: f.AnyFact) -> dict[str, Any]:
    """Return the fields a reader wants to see beside the fact's own metadata; never a key."""
    told = dict(fact.metadata)
    for name in ("reason", "tier", "attempt", "attempts", "slug"):
        value = getattr(fact, name, None)
        if value is not None:
            told[name] = value
    return told
