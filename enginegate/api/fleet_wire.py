"""What travels about the fleet as a whole: status, metrics, the audit trail, health."""

from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from enginegate import audit, metrics
from enginegate.api.wire import Limit, Slug, Timestamp, Uuid, number, shown, timestamp
from enginegate.model import Outcome

HEALTH = ("ok", "degraded", "critical")
CRITICAL_SHARE = 0.2
CURSOR_PATTERN = "^[0-9a-f]{1,15}$"


class Snapshot(Struct, frozen=True, kw_only=True):
    """`unhealthy_count`: failed engines, and running ones whose last probe failed."""

    total: int
    by_status: dict[str, int]
    health: Annotated[str, shown(enum=[*HEALTH])]
    unhealthy_count: int


class ProductSnapshot(Snapshot, frozen=True, kw_only=True):
    product_id: Uuid
    slug: Slug


class Pool(Struct, frozen=True, kw_only=True):
    """Engines booted ahead of their users; they belong to no product."""

    size: int
    ready: int
    booting: int
    stalled: bool


class FleetSnapshot(Snapshot, frozen=True, kw_only=True):
    """What the admin key sees: all products, and enginegate itself."""

    products: list[ProductSnapshot]
    backend: Annotated[str, shown(enum=["ok", "down"])]
    journal: Annotated[str, shown(enum=["ok", "full", "failed"])]
    pool: Pool
    uptime_s: float
    version: str


class Metrics(Struct, frozen=True, kw_only=True):
    """`_1h` and averages are over the last hour, `_1m` over the last minute."""

    provisions_1h: int
    crashes_1h: int
    restarts_1h: int
    avg_boot_ms: float | None
    total_provisions: int
    total_destroys: int
    admits_1m: int
    denials_1m: dict[str, int]
    wakes_1h: int
    sleeps_1h: int
    avg_wake_ms: float | None


class Subsystems(Struct, frozen=True, kw_only=True):
    journal: Annotated[str, shown(enum=["ok", "full", "failed"])]
    backend: Annotated[str, shown(enum=["ok", "blind", "down"])]


class Health(Struct, frozen=True, kw_only=True):
    status: Annotated[str, shown(enum=["ok", "degraded"])]
    subsystems: Subsystems


class AuditQuery(Struct, frozen=True, kw_only=True):
    user_id: str | UnsetType = UNSET
    engine_id: str | UnsetType = UNSET
    action: str | UnsetType = UNSET
    actor: str | UnsetType = UNSET
    product: str | UnsetType = UNSET
    since: Annotated[datetime, Meta(tz=True)] | UnsetType = UNSET
    until: Annotated[datetime, Meta(tz=True)] | UnsetType = UNSET
    limit: Limit = 100
    cursor: Annotated[str, Meta(pattern=CURSOR_PATTERN)] | UnsetType = UNSET


class AuditEntry(Struct, frozen=True, kw_only=True):
    id: int
    timestamp: Timestamp
    product_id: str | None
    user_id: str | None
    engine_id: str | None
    action: Annotated[str, shown(enum=sorted(audit.ALL_ACTIONS))]
    actor: str
    outcome: Outcome
    metadata: dict[str, Any]
    duration_ms: float | None


class AuditPage(Struct, frozen=True, kw_only=True):
    """Newest first; `next_cursor` null: there is no more."""

    entries: list[AuditEntry]
    next_cursor: str | None


def snapshot(counts: dict[str, int], *, failing: int) -> Snapshot:
    """Judge a fleet by its engines per state; `failing` run, but their last probe failed."""
    total, failed = sum(counts.values()), counts["failed"]
    health = "ok" if not failed else "degraded"
    if failed and failed >= CRITICAL_SHARE * total:
        health = "critical"
    return Snapshot(total=total, by_status=counts, health=health, unhealthy_count=failed + failing)


def pool(found: dict[str, int | bool]) -> Pool:
    return msgspec.convert(found, Pool)


def summary(found: metrics.Summary) -> Metrics:
    return msgspec.convert(found, Metrics, from_attributes=True)


def audit_entry(found: audit.Entry) -> AuditEntry:
    return AuditEntry(
        id=found.id,
        timestamp=timestamp(found.at_ms),
        product_id=found.product_id,
        user_id=found.user_id,
        engine_id=found.engine_id,
        action=found.action,
        actor=found.actor,
        outcome=found.outcome,
        metadata=found.metadata,
        duration_ms=None if found.duration_ms is None else number(found.duration_ms),
    )
