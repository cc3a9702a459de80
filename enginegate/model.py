"""The nouns: products, engines and what may be said of them. No behaviour.

Wall-clock times are integers, milliseconds since the Unix epoch (`..._at_ms`):
they survive a restart, compare exactly, and are never used to wait.

Nothing here refers back to what refers to it, so the garbage collector need not look
(`gc=False`): a walk over the rows of a large fleet would hold up every admit.
"""

from enum import StrEnum

from msgspec import Struct


class Status(StrEnum):
    """The six states of an engine; a destroyed engine has no row and no state."""

    __hash__ = str.__hash__  # an Enum's own is in Python, and the table is asked at every fact

    PROVISIONING = "provisioning"
    RUNNING = "running"
    SLEEPING = "sleeping"
    STOPPED = "stopped"
    FAILED = "failed"
    DESTROYING = "destroying"


class Outcome(StrEnum):
    """How an audited action ended."""

    OK = "ok"
    FAILED = "failed"
    DENIED = "denied"


class Policy(Struct, gc=False, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a product may do; None means no limit of its own."""

    max_engines: int | None = None
    rate_limit_rpm: int | None = None
    user_rate_limit_rpm: int | None = None
    idle_sleep_s: float | None = None


class OldKey(Struct, gc=False, frozen=True):
    """A key that rotations with an overlap have replaced; it works until `until_ms`."""

    key_hash: str
    until_ms: int


class Product(Struct, gc=False, frozen=True, kw_only=True, tag_field="t", tag="product"):
    """A tenant. Only digests of its platform keys are kept.

    `old_key_hash` still works until `old_key_until_ms`, and so do the `older_keys` that
    rotations soon one after the other have left, newest first.
    """

    product_id: str
    slug: str
    display_name: str
    policy: Policy
    key_hash: str
    created_at_ms: int
    old_key_hash: str | None = None
    old_key_until_ms: int = 0
    deleting: bool = False
    older_keys: tuple[OldKey, ...] = ()


class PendingKey(Struct, gc=False, frozen=True):
    """The key a rotation under way wants to bring into force."""

    sealed_key: str
    key_hash: str


class Engine(Struct, gc=False, frozen=True, kw_only=True, tag_field="t", tag="engine"):
    """One user's engine, as the journal knows it.

    `incarnation` rises each time the engine comes (back) into service, so that a
    probe or a sleep decision made for an earlier life is recognised as stale.
    `old_key_hash` still works beside the new one until `old_key_until_ms` (live
    rotation), and so do the `older_keys` that rotations soon one after the other
    have left, newest first. `restart_at_ms` is set exactly while an automatic
    restart is planned or at work. `deep` is set while it sleeps stopped, or is about
    to, and not frozen; `stopping` while a stop is at work, or was when enginegate ended.
    """

    engine_id: str
    product_id: str
    user_id: str
    status: Status
    port: int
    engine_version: str
    sealed_key: str
    key_hash: str
    created_at_ms: int
    changed_at_ms: int
    incarnation: int = 0
    healthy_at_ms: int | None = None
    booted_at_ms: int | None = None
    restart_attempts: int = 0
    restart_at_ms: int | None = None
    pending_key: PendingKey | None = None
    old_key_hash: str | None = None
    old_key_until_ms: int = 0
    reason: str = ""
    deep: bool = False
    stopping: bool = False
    older_keys: tuple[OldKey, ...] = ()


class Spare(Struct, gc=False, frozen=True, kw_only=True, tag_field="t", tag="spare"):
    """An engine booted in advance: it has everything but a user."""

    engine_id: str
    port: int
    engine_version: str
    sealed_key: str
    key_hash: str
    created_at_ms: int


class Sample(Struct, gc=False, frozen=True, array_like=True):
    """One counted happening: when, what kind, and how long it took (None: no duration)."""

    at_ms: int
    kind: str
    duration_ms: float | None


class Counters(Struct, gc=False, frozen=True, kw_only=True, tag_field="t", tag="counters"):
    """What a product's metrics need from the past: totals for ever, samples of the last hour."""

    product_id: str
    total_provisions: int = 0
    total_destroys: int = 0
    samples: tuple[Sample, ...] = ()


SnapshotRecord = Product | Engine | Spare | Counters
"""What a snapshot of the fleet consists of; a snapshot is a sequence of these."""
