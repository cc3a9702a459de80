"""Everything that may be written to the journal: what happened, never what to do.

A fact carries its own time, identities, port and sealed key, so that nothing
downstream of it reads a clock or draws a random number. Tags are a file format:
a tag never changes and is never used again; a new field gets a default.
"""

from typing import Any

from msgspec import Struct

from enginegate.model import Outcome, Policy


class Fact(Struct, gc=False, frozen=True, kw_only=True, tag_field="t"):
    """What all facts carry: when (ms since the epoch) and by whom.

    `actor` is `system`, `admin` or the product's slug. `duration_ms` is how long
    the work took that this fact closes.
    """

    at_ms: int
    actor: str = "system"
    duration_ms: float | None = None
    metadata: dict[str, Any] = {}  # msgspec copies mutable defaults


class ProductFact(Fact, frozen=True, kw_only=True):
    product_id: str


class ProductRegistered(ProductFact, frozen=True, kw_only=True, tag="product.registered"):
    slug: str
    display_name: str
    policy: Policy
    key_hash: str


class PolicyChanged(ProductFact, frozen=True, kw_only=True, tag="product.policy_changed"):
    policy: Policy


class PlatformKeyRotated(ProductFact, frozen=True, kw_only=True, tag="product.key_rotated"):
    """The new key is in force; the old one works until `old_key_until_ms` (0: none does)."""

    key_hash: str
    old_key_until_ms: int = 0


class ProductDeletionBegun(ProductFact, frozen=True, kw_only=True, tag="product.deletion_begun"):
    """Its keys stop working at once; its engines go next."""


class ProductDeleted(ProductFact, frozen=True, kw_only=True, tag="product.deleted"):
    slug: str


class EngineFact(Fact, frozen=True, kw_only=True):
    """A fact about one engine; carries the owner so that the trail outlives the row."""

    engine_id: str
    product_id: str
    user_id: str


class Provisioned(EngineFact, frozen=True, kw_only=True, tag="engine.provisioned"):
    """Intent: the row, its port and its key exist from here on; the boot follows."""

    port: int
    engine_version: str
    sealed_key: str
    key_hash: str


class Claimed(EngineFact, frozen=True, kw_only=True, tag="engine.claimed"):
    """A user got an engine that was booted in advance; it runs."""

    port: int
    engine_version: str
    sealed_key: str
    key_hash: str


class Booted(EngineFact, frozen=True, kw_only=True, tag="engine.booted"):
    """The engine answered healthy. `via` is `provision`, `start` or `auto_restart`."""

    via: str


class Slept(EngineFact, frozen=True, kw_only=True, tag="engine.slept"):
    """Frozen, for `reason` (`idle` or `request`)."""

    reason: str


class Deepened(EngineFact, frozen=True, kw_only=True, tag="engine.deepened"):
    """Intent: a sleeper is stopped to give its memory back, and sleeps on.

    `reason` is `stop_after` (it slept for so long) or `low_memory`. Recorded before
    the stop, so that a stop cut in half is finished and never taken for a crash.
    """

    reason: str
    tier: str = "stopped"


class Woken(EngineFact, frozen=True, kw_only=True, tag="engine.woken"):
    """Thawed and healthy. `tier` says what it was: `frozen` or `stopped`."""

    tier: str = "frozen"


class StopBegun(EngineFact, frozen=True, kw_only=True, tag="engine.stop_begun"):
    """Intent: a stop that is cut in half is finished, and never taken for a crash."""


class Stopped(EngineFact, frozen=True, kw_only=True, tag="engine.stopped"):
    pass


class StopFailed(EngineFact, frozen=True, kw_only=True, tag="engine.stop_failed"):
    """The intent is forgotten: the engine is what it was before."""

    reason: str


class Failed(EngineFact, frozen=True, kw_only=True, tag="engine.failed"):
    """Boot, wake or health failed.

    `during` is `provision`, `start`, `wake` or `running`; `outage` where others ended it:
    the backend as a whole, or somebody's hand. A restart is planned exactly when
    `restart_at_ms` is set; `restart_attempts` is the count of attempts made since the
    engine was last well for long enough.
    """

    during: str
    reason: str
    restart_at_ms: int | None = None
    restart_attempts: int = 0


class RestartBegun(EngineFact, frozen=True, kw_only=True, tag="engine.restart_begun"):
    """Automatic restart number `attempt` is at work."""

    attempt: int


class RestartFailed(EngineFact, frozen=True, kw_only=True, tag="engine.restart_failed"):
    """Attempt `attempt` did not get healthy; the next one, if any, is planned."""

    attempt: int
    reason: str
    restart_at_ms: int | None = None


class RestartsGivenUp(EngineFact, frozen=True, kw_only=True, tag="engine.restarts_given_up"):
    """No more attempts; only a start brings the engine back."""

    attempts: int


class VersionChanged(EngineFact, frozen=True, kw_only=True, tag="engine.version_changed"):
    engine_version: str


class PortMoved(EngineFact, frozen=True, kw_only=True, tag="engine.port_moved"):
    """Another program held the old port; this one is leased in its place."""

    port: int


class KeyRotationBegun(EngineFact, frozen=True, kw_only=True, tag="engine.key_rotation_begun"):
    """Intent: the next key is durable before the engine hears of it."""

    sealed_key: str
    key_hash: str


class KeyRotated(EngineFact, frozen=True, kw_only=True, tag="engine.key_rotated"):
    """The pending key is in force; the old one works until `old_key_until_ms` (0: no longer)."""

    old_key_until_ms: int = 0


class KeyRotationFailed(EngineFact, frozen=True, kw_only=True, tag="engine.key_rotation_failed"):
    """The pending key is forgotten; the old one stays in force."""

    reason: str


class DestroyBegun(EngineFact, frozen=True, kw_only=True, tag="engine.destroy_begun"):
    """Intent without a way back: container, volume and row go."""


class Destroyed(EngineFact, frozen=True, kw_only=True, tag="engine.destroyed"):
    pass


class SpareBegun(Fact, frozen=True, kw_only=True, tag="pool.begun"):
    """Intent: an engine without a user, its port and its key exist from here on."""

    engine_id: str
    port: int
    engine_version: str
    sealed_key: str
    key_hash: str


class SpareRemoved(Fact, frozen=True, kw_only=True, tag="pool.removed"):
    """Nobody claimed it, and it is gone with its data."""

    engine_id: str


class Noted(Fact, frozen=True, kw_only=True, tag="audit.noted"):
    """An entry for the audit trail that changes no state."""

    action: str
    outcome: Outcome = Outcome.OK
    product_id: str | None = None
    user_id: str | None = None
    engine_id: str | None = None


AnyFact = (
    ProductRegistered
    | PolicyChanged
    | PlatformKeyRotated
    | ProductDeletionBegun
    | ProductDeleted
    | Provisioned
    | Claimed
    | Booted
    | Slept
    | Deepened
    | Woken
    | StopBegun
    | Stopped
    | StopFailed
    | Failed
    | RestartBegun
    | RestartFailed
    | RestartsGivenUp
    | VersionChanged
    | PortMoved
    | KeyRotationBegun
    | KeyRotated
    | KeyRotationFailed
    | DestroyBegun
    | Destroyed
    | SpareBegun
    | SpareRemoved
    | Noted
)
