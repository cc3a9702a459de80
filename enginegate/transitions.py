"""What follows from a fact: the one table of legal transitions, and `evolve`.

`evolve` is the only code that changes an engine. Live operation and replay both
call it, so a replayed fleet equals the living one by construction. A fact that
the table does not list for the engine's state is refused; legality is looked up,
never coded. The README's state diagram is printed from this table.
"""

from typing import Any, assert_never

from msgspec.structs import replace

from enginegate import facts as f
from enginegate.model import Engine, PendingKey, Status
from enginegate.policy import OLD_KEYS_MAX, old_keys

GONE = "gone"

PROVISIONING, RUNNING, SLEEPING = Status.PROVISIONING, Status.RUNNING, Status.SLEEPING
STOPPED, FAILED, DESTROYING = Status.STOPPED, Status.FAILED, Status.DESTROYING

EngineChange = (
    f.Provisioned
    | f.Claimed
    | f.Booted
    | f.Slept
    | f.Deepened
    | f.Woken
    | f.StopBegun
    | f.Stopped
    | f.StopFailed
    | f.Failed
    | f.RestartBegun
    | f.RestartFailed
    | f.RestartsGivenUp
    | f.VersionChanged
    | f.PortMoved
    | f.KeyRotationBegun
    | f.KeyRotated
    | f.KeyRotationFailed
    | f.DestroyBegun
    | f.Destroyed
)

_RESTING: dict[Status | None, Status | None] = {STOPPED: STOPPED, FAILED: FAILED}
_STOPPABLE: dict[Status | None, Status | None] = {
    RUNNING: RUNNING,
    SLEEPING: SLEEPING,
    FAILED: FAILED,
}
_MADE: dict[Status | None, Status | None] = {**_STOPPABLE, STOPPED: STOPPED}
_STARTABLE: dict[Status | None, Status | None] = {
    PROVISIONING: PROVISIONING,
    SLEEPING: SLEEPING,
    **_RESTING,
    RUNNING: RUNNING,
}

TABLE: dict[type[f.EngineFact], dict[Status | None, Status | None]] = {
    f.Provisioned: {None: PROVISIONING},
    f.Claimed: {None: RUNNING},
    f.Booted: {
        PROVISIONING: RUNNING,
        SLEEPING: RUNNING,
        STOPPED: RUNNING,
        FAILED: RUNNING,
    },
    f.Slept: {RUNNING: SLEEPING},
    f.Deepened: {SLEEPING: SLEEPING},
    f.Woken: {SLEEPING: RUNNING},
    f.StopBegun: {**_STOPPABLE},
    f.Stopped: dict.fromkeys(_STOPPABLE, STOPPED),
    f.StopFailed: {**_STOPPABLE},
    f.Failed: {
        PROVISIONING: FAILED,
        RUNNING: FAILED,
        SLEEPING: FAILED,
        STOPPED: FAILED,
        FAILED: FAILED,
    },
    f.RestartBegun: {FAILED: FAILED},
    f.RestartFailed: {FAILED: FAILED},
    f.RestartsGivenUp: {FAILED: FAILED},
    f.VersionChanged: {**_RESTING},
    f.PortMoved: {**_STARTABLE},
    f.KeyRotationBegun: {RUNNING: RUNNING},
    f.KeyRotated: {**_MADE},
    f.KeyRotationFailed: {**_MADE},
    f.DestroyBegun: {
        PROVISIONING: DESTROYING,
        RUNNING: DESTROYING,
        SLEEPING: DESTROYING,
        STOPPED: DESTROYING,
        FAILED: DESTROYING,
    },
    f.Destroyed: {DESTROYING: None},
}


class IllegalTransitionError(Exception):
    """A fact that cannot follow: our bug, or a journal edited by hand."""

    def __init__(self, fact: f.EngineFact, before: Status | None) -> None:
        at = before.value if before else "no engine"
        super().__init__(f"{type(fact).__name__} cannot follow {at} (engine {fact.engine_id})")
        self.fact = fact
        self.before = before


def follows(kind: type[f.EngineFact], before: Status | None) -> bool:
    """Return whether a fact of this kind is legal for an engine in this state."""
    return before in TABLE[kind]


def evolve(engine: Engine | None, fact: EngineChange) -> Engine | None:
    """Return the engine after the fact, or None once it is destroyed.

    Raises:
        IllegalTransitionError: the table does not list the fact for this state;
            nothing has changed.
    """
    before = engine.status if engine else None
    try:
        after = TABLE[type(fact)][before]
    except KeyError:
        raise IllegalTransitionError(fact, before) from None
    if after is None:
        return None
    if engine is None:
        assert isinstance(fact, f.Provisioned | f.Claimed)
        return _born(fact, after)
    return _changed(engine, after, fact)


def _born(fact: f.Provisioned | f.Claimed, status: Status) -> Engine:
    up_since_ms = fact.at_ms if status is RUNNING else None
    return Engine(
        engine_id=fact.engine_id,
        product_id=fact.product_id,
        user_id=fact.user_id,
        status=status,
        port=fact.port,
        engine_version=fact.engine_version,
        sealed_key=fact.sealed_key,
        key_hash=fact.key_hash,
        created_at_ms=fact.at_ms,
        changed_at_ms=fact.at_ms,
        healthy_at_ms=up_since_ms,
        booted_at_ms=up_since_ms,
    )


def _changed(engine: Engine, after: Status, fact: EngineChange) -> Engine:
    changes = _changes(engine, fact)
    if after is not engine.status:
        changes["status"], changes["changed_at_ms"] = after, fact.at_ms
        changes["deep"] = changes["stopping"] = False
    return replace(engine, **changes)


def _changes(engine: Engine, fact: EngineChange) -> dict[str, Any]:  # noqa: C901 - one flat case per fact, none of them branches
    """Return the fields that the fact sets, beside those that every change of state does."""
    match fact:
        case f.Woken():
            return _in_service(engine, fact, keep_attempts=True)
        case f.Slept():
            return {"reason": fact.reason}
        case f.Booted():
            return _in_service(engine, fact, keep_attempts=fact.via == "auto_restart")
        case f.Deepened():
            return {"deep": True}
        case f.StopBegun() | f.StopFailed():
            return {"stopping": isinstance(fact, f.StopBegun)}
        case f.Stopped():
            return {"restart_at_ms": None, "restart_attempts": 0, "reason": "request"}
        case f.Failed():
            return {
                "restart_at_ms": fact.restart_at_ms,
                "restart_attempts": fact.restart_attempts,
                "reason": fact.reason,
            }
        case f.RestartBegun():
            return {"restart_attempts": fact.attempt}
        case f.RestartFailed():
            return {"restart_at_ms": fact.restart_at_ms, "reason": fact.reason}
        case f.RestartsGivenUp() | f.DestroyBegun():
            return {"restart_at_ms": None}
        case f.VersionChanged():
            return {"engine_version": fact.engine_version}
        case f.PortMoved():
            return {"port": fact.port}
        case f.KeyRotationBegun():
            return {"pending_key": PendingKey(fact.sealed_key, fact.key_hash)}
        case f.KeyRotated():
            return _with_new_key(engine, fact)
        case f.KeyRotationFailed():
            return {"pending_key": None}
        case (
            f.Provisioned() | f.Claimed() | f.Destroyed()
        ):  # pragma: no cover - evolve has answered these
            raise AssertionError(fact)
        case _:
            assert_never(fact)


def _in_service(engine: Engine, fact: f.Booted | f.Woken, *, keep_attempts: bool) -> dict[str, Any]:
    thawed = isinstance(fact, f.Woken) and fact.tier == "frozen"
    return {
        "incarnation": engine.incarnation + 1,
        "healthy_at_ms": fact.at_ms,
        "booted_at_ms": engine.booted_at_ms if thawed else fact.at_ms,
        "restart_at_ms": None,
        "restart_attempts": engine.restart_attempts if keep_attempts else 0,
        "reason": "",
    }


def _with_new_key(engine: Engine, fact: f.KeyRotated) -> dict[str, Any]:
    pending = engine.pending_key
    assert pending is not None
    overlaps = bool(fact.old_key_until_ms)
    return {
        "sealed_key": pending.sealed_key,
        "key_hash": pending.key_hash,
        "pending_key": None,
        "older_keys": old_keys(engine, fact.at_ms)[: OLD_KEYS_MAX - 1] if overlaps else (),
        "old_key_hash": engine.key_hash if overlaps else None,
        "old_key_until_ms": fact.old_key_until_ms,
        "incarnation": engine.incarnation + 1,
    }


def diagram() -> str:
    """Return the table as a Mermaid state diagram, for the README."""
    edges = {
        (_name(before), _name(after), kind.__struct_config__.tag)
        for kind, moves in TABLE.items()
        for before, after in moves.items()
        if before is not after
    }
    lines = [f"    {a} --> {b}: {tag}" for a, b, tag in sorted(edges, key=str)]
    return "\n".join(["stateDiagram-v2", *lines])


def _name(status: Status | None) -> str:
    return status.value if status else "[*]"
