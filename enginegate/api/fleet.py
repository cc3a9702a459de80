"""Routes about the fleet as a whole: status, metrics, the audit trail, health."""

from msgspec import UNSET, UnsetType
from msgspec.structs import asdict
from starlette.responses import Response

import enginegate
from enginegate import metrics
from enginegate.api import exposition, fleet_wire, wire
from enginegate.api.auth import Access, Presented, Role, refusal
from enginegate.api.call import RECOVERING, Call, Route, json_response
from enginegate.api.events import events
from enginegate.errors import (
    InvalidPlatformKeyError,
    ProductNotFoundError,
    ShuttingDownError,
    StorageUnavailableError,
)
from enginegate.registry import LiveProduct
from enginegate.registry.trail import Query
from enginegate.slices import sliced

AT_ONCE = 25  # entries, some 0.1 ms
TEXT_WANTS = "Prometheus text is for the admin key or the metrics key."


async def status(call: Call) -> fleet_wire.Snapshot:
    if call.identity.product is not None:
        return await _snapshot(call, call.products)
    services = call.services
    registry = services.registry
    return fleet_wire.FleetSnapshot(
        **asdict(await _snapshot(call, call.products)),
        products=[await _of_product(call, live) async for live in sliced(call.products)],
        backend=_backend(call),
        journal=registry.journal_status,
        pool=fleet_wire.pool(services.pool()),
        uptime_s=round(services.clock.now() - services.started_at, 3),
        version=enginegate.__version__,
    )


async def _snapshot(call: Call, products: list[LiveProduct]) -> fleet_wire.Snapshot:
    failing = 0
    async for product in sliced(products):  # many small ones are a long turn, too
        async for live in product.roster.walk(running=True):
            failing += live.failing
    return fleet_wire.snapshot(call.services.registry.counts(products), failing=failing)


async def _of_product(call: Call, live: LiveProduct) -> fleet_wire.ProductSnapshot:
    return fleet_wire.ProductSnapshot(
        **asdict(await _snapshot(call, [live])),
        product_id=live.product.product_id,
        slug=live.product.slug,
    )


def _backend(call: Call) -> str:
    return "ok" if call.services.health.backend_ok else "down"


async def show_metrics(call: Call) -> Response:
    role = call.identity.role
    media = exposition.wanted(call.request.headers.getlist("accept"))
    if media != exposition.JSON:
        if role is Role.PRODUCT:
            raise InvalidPlatformKeyError(TEXT_WANTS)
        return await exposition.page(call.services, media)
    if role is Role.MONITOR:
        raise refusal(Presented.read(call.request.scope["headers"]), Access.EITHER)
    registry, tallies = call.services.registry, [live.tally for live in call.products]
    if call.identity.product is None:
        tallies.append(registry.retired)
    traffic = [live.traffic for live in call.products]
    found = metrics.summary(tallies, traffic, call.services.clock.wall_ms())
    response = json_response(fleet_wire.summary(found))
    response.headers["vary"] = "accept"
    return response


async def audit(call: Call) -> fleet_wire.AuditPage:
    asked: fleet_wire.AuditQuery = call.query
    owner = _asked_product(call, asked)
    found, before = await call.services.registry.trail.search(
        Query(
            product_id=owner.product.product_id if owner else None,
            user_id=_given(asked.user_id),
            engine_id=_given(asked.engine_id),
            action=_given(asked.action),
            actor=_given(asked.actor),
            since_ms=None if asked.since is UNSET else wire.milliseconds(asked.since, up=True),
            until_ms=None if asked.until is UNSET else wire.milliseconds(asked.until),
            before=None if asked.cursor is UNSET else int(asked.cursor, 16),
            limit=asked.limit,
        )
    )
    return fleet_wire.AuditPage(
        entries=[fleet_wire.audit_entry(entry) async for entry in sliced(found, size=AT_ONCE)],
        next_cursor=None if before is None else f"{before:x}",
    )


def _asked_product(call: Call, asked: fleet_wire.AuditQuery) -> LiveProduct | None:
    """Return whose entries are asked for; None: everybody's. To a product there is no other."""
    if asked.product is UNSET:
        return call.identity.product
    for live in call.products:
        if live.product.slug == asked.product:
            return live
    raise ProductNotFoundError("`product` names no product that you may see.")


def _given(text: str | UnsetType) -> str | None:
    return None if text is UNSET else text


async def health(call: Call) -> fleet_wire.Health:
    """Answer whether enginegate takes requests; trouble behind it is no reason to say no."""
    match call.services.phase.name:
        case "recovering":
            raise StorageUnavailableError(RECOVERING, status="recovering")
        case "stopping":
            raise ShuttingDownError("enginegate is shutting down.", status="stopping")
        case _:
            pass
    journal, backend = call.services.registry.journal_status, _backend(call)
    if backend == "ok" and call.services.health.blind:
        backend = "blind"  # it answers, but tells nothing of its own accord
    well = journal == "ok" and backend == "ok"
    return fleet_wire.Health(
        status="ok" if well else "degraded",
        subsystems=fleet_wire.Subsystems(journal=journal, backend=backend),
    )


ROUTES = (
    Route(
        "GET",
        "/status",
        status,
        Access.MONITOR,
        "Engines per state: the product's own, or with the admin key all and enginegate itself.",
        answers=(fleet_wire.Snapshot, fleet_wire.FleetSnapshot),
    ),
    Route(
        "GET",
        "/metrics",
        show_metrics,
        Access.MONITOR,
        "What happened lately as JSON, or everything counted as Prometheus text.",
        answers=(fleet_wire.Metrics,),
        media=("application/json", exposition.OPENMETRICS, exposition.PLAIN),
    ),
    Route(
        "GET",
        "/audit",
        audit,
        Access.EITHER,
        "Who did what, newest first.",
        answers=(fleet_wire.AuditPage,),
        query=fleet_wire.AuditQuery,
    ),
    Route(
        "GET",
        "/events",
        events,
        Access.EITHER,
        "The audit trail as it happens; `Last-Event-ID` resumes.",
        errors=("INVALID_REQUEST", "SHUTTING_DOWN"),
        media=("text/event-stream",),
    ),
    Route(
        "GET",
        "/health",
        health,
        Access.PUBLIC,
        "Whether enginegate takes requests.",
        answers=(fleet_wire.Health,),
        errors=("STORAGE_UNAVAILABLE", "SHUTTING_DOWN"),
        while_recovering=True,
    ),
)
