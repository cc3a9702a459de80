"""Routes about one user's engine: look at it, admit to it, and the verbs."""

from math import isfinite

from msgspec import UNSET, UnsetType

from enginegate.api import wire
from enginegate.api.auth import Access
from enginegate.api.call import BAD_USER_ID, Call, Route
from enginegate.clock import Clock
from enginegate.errors import (
    EngineNotRunningError,
    InvalidRequestError,
    PolicyDeniedError,
    PortExhaustionError,
    QuotaExceededError,
)
from enginegate.model import Status
from enginegate.policy import valid_user_id
from enginegate.registry import LiveEngine
from enginegate.registry.fleet import Signal

CHANGING = ("BACKEND_ERROR", "BACKEND_UNAVAILABLE", "STORAGE_UNAVAILABLE", "SHUTTING_DOWN")


async def provision(call: Call) -> wire.Provisioned:
    asked: wire.ProvisionRequest = call.body
    if not valid_user_id(asked.user_id):
        raise InvalidRequestError(BAD_USER_ID)
    services, owner, user_id = call.services, call.owner, asked.user_id
    version = _given(asked.engine_version)
    try:
        live = await services.lifecycle.provision(owner, user_id, version=version, actor=call.actor)
    except (PolicyDeniedError, QuotaExceededError, PortExhaustionError) as refusal:
        services.admission.denials.add(
            owner, user_id, action="provision", reason=refusal.code.lower()
        )
        raise
    return wire.Provisioned(
        engine_id=live.engine.engine_id,
        user_id=live.engine.user_id,
        url=live.url,
        api_key=live.api_key,
    )


def _given(version: str | UnsetType) -> str | None:
    return None if version is UNSET else version


async def engines(call: Call) -> wire.Engines:
    asked: wire.EnginesQuery = call.query
    page, total = await call.owner.roster.page(
        None if asked.status is UNSET else asked.status, offset=asked.offset, limit=asked.limit
    )
    return wire.Engines(engines=[wire.listed(live) for live in page], total=total)


async def engine(call: Call) -> wire.Engine:
    return wire.engine(call.engine())


async def admit(call: Call) -> wire.AdmittedAnswer | wire.RefusedAnswer:
    answer = await call.services.admission.admit(
        call.owner, call.user_id, call.body, actor=call.actor
    )
    return wire.admit_answer(answer)


async def touch(call: Call) -> wire.Touched:
    live = call.engine()
    if not live.running:
        status = live.engine.status.value
        raise EngineNotRunningError(f"The engine is {status}.", status=status)
    now = call.services.clock.now()
    live.extend_lease(now)
    return wire.Touched(lease_s=wire.lease(live.lease_left_s(now)))


async def start(call: Call) -> wire.Started:
    asked: wire.StartRequest = call.body
    live = call.engine()
    await call.services.lifecycle.start(
        live, version=_given(asked.engine_version), actor=call.actor
    )
    return wire.Started(url=live.url)


async def stop(call: Call) -> wire.Stopped:
    await call.services.lifecycle.stop(call.engine(), actor=call.actor)
    return wire.Stopped()


async def sleep(call: Call) -> wire.Slept:
    asked: wire.SleepRequest = call.body
    await call.services.lifecycle.sleep(call.engine(), actor=call.actor, force=asked.force)
    return wire.Slept()


async def rotate_key(call: Call) -> wire.KeyRotated:
    live = call.engine()
    key = await call.services.lifecycle.rotate_key(live, actor=call.actor)
    return wire.KeyRotated(engine_id=live.engine.engine_id, api_key=key)


async def destroy(call: Call) -> wire.Destroyed:
    engine_id = await call.services.lifecycle.destroy(call.engine(), actor=call.actor)
    return wire.Destroyed(engine_id=engine_id)


async def activity(call: Call) -> wire.Activity:
    live, clock = call.engine(), call.services.clock
    left_s = live.lease_left_s(clock.now())
    ends_at = None
    if live.running and left_s:
        ends_at = wire.timestamp(clock.wall_ms() + round(left_s * 1000))
    row = live.engine
    asleep = row.status is Status.SLEEPING
    stop_after_s = call.services.config.idle.stop_after_s if asleep and not row.deep else 0
    stop_at_ms = row.changed_at_ms + round(stop_after_s * 1000)
    return wire.Activity(
        engine_id=row.engine_id,
        status=row.status,
        lease_s=wire.lease(left_s) if live.running else None,
        lease_until=ends_at,
        planned_sleep_at=ends_at,
        tier=("stopped" if row.deep else "frozen") if asleep else None,
        planned_stop_at=wire.timestamp(stop_at_ms) if stop_after_s else None,
        signals=[*_last_use(live, clock), *(_seen(one) for one in live.signals.values())],
        vetoes=[_seen(signal) for signal in live.vetoes],
        last_transition=wire.LastTransition(
            status=row.status, at=wire.timestamp(row.changed_at_ms), reason=row.reason
        ),
    )


def _last_use(live: LiveEngine, clock: Clock) -> list[wire.SignalSeen]:
    """Return what the lease tells: when it was last moved by a use of a running engine."""
    since_s = clock.now() - live.last_use()
    if not live.running or not isfinite(since_s):
        return []
    at_ms = clock.wall_ms() - round(since_s * 1000)
    return [wire.SignalSeen(kind="lease", value=live.lease_s, at=wire.timestamp(at_ms))]


def _seen(signal: Signal) -> wire.SignalSeen:
    return wire.SignalSeen(kind=signal.kind, value=signal.value, at=wire.timestamp(signal.at_ms))


ROUTES = (
    Route(
        "POST",
        "/engines/provision",
        provision,
        Access.PLATFORM,
        "Create a user's engine; answers when it is running.",
        answers=(wire.Provisioned,),
        body=wire.ProvisionRequest,
        errors=(
            *CHANGING,
            "POLICY_DENIED",
            "ENGINE_ALREADY_EXISTS",
            "ENGINE_NOT_FOUND",
            "QUOTA_EXCEEDED",
            "PORT_EXHAUSTION",
            "BOOT_TIMEOUT",
        ),
    ),
    Route(
        "GET",
        "/engines",
        engines,
        Access.PLATFORM,
        "List the product's engines, oldest first, without their keys.",
        answers=(wire.Engines,),
        query=wire.EnginesQuery,
    ),
    Route(
        "GET",
        "/engines/{user_id}",
        engine,
        Access.PLATFORM,
        "Look up a user's engine; changes nothing.",
        answers=(wire.Engine,),
        errors=("ENGINE_NOT_FOUND",),
    ),
    Route(
        "POST",
        "/engines/{user_id}/admit",
        admit,
        Access.PLATFORM,
        "May this user's request go on, and where to?",
        answers=(wire.AdmittedAnswer, wire.RefusedAnswer),
        body=wire.AdmitRequest,
        errors=(
            *CHANGING,
            "POLICY_DENIED",
            "RATE_LIMITED",
            "QUOTA_EXCEEDED",
            "PORT_EXHAUSTION",
            "BOOT_TIMEOUT",
            "WAKE_TIMEOUT",
        ),
    ),
    Route(
        "POST",
        "/engines/{user_id}/touch",
        touch,
        Access.PLATFORM,
        "Keep a running engine awake; wakes and provisions nothing, has no rate limit.",
        answers=(wire.Touched,),
        body=wire.Nothing,
        errors=("ENGINE_NOT_FOUND", "ENGINE_NOT_RUNNING"),
    ),
    Route(
        "POST",
        "/engines/{user_id}/start",
        start,
        Access.PLATFORM,
        "Bring a stopped, sleeping or failed engine into service.",
        answers=(wire.Started,),
        body=wire.StartRequest,
        errors=(
            *CHANGING,
            "POLICY_DENIED",
            "ENGINE_NOT_FOUND",
            "ENGINE_NOT_RUNNING",
            "ENGINE_ALREADY_RUNNING",
            "PORT_EXHAUSTION",
            "BOOT_TIMEOUT",
            "WAKE_TIMEOUT",
        ),
    ),
    Route(
        "POST",
        "/engines/{user_id}/stop",
        stop,
        Access.PLATFORM,
        "Stop an engine with 30 s of grace; its data stays.",
        answers=(wire.Stopped,),
        body=wire.Nothing,
        errors=(*CHANGING, "ENGINE_NOT_FOUND", "ENGINE_NOT_RUNNING"),
    ),
    Route(
        "POST",
        "/engines/{user_id}/sleep",
        sleep,
        Access.PLATFORM,
        "Freeze a running engine, unless it is in use.",
        answers=(wire.Slept,),
        body=wire.SleepRequest,
        errors=(*CHANGING, "ENGINE_NOT_FOUND", "ENGINE_NOT_RUNNING", "ENGINE_BUSY"),
    ),
    Route(
        "POST",
        "/engines/{user_id}/rotate-key",
        rotate_key,
        Access.PLATFORM,
        "Give a running engine a new key.",
        answers=(wire.KeyRotated,),
        body=wire.Nothing,
        errors=(
            *CHANGING,
            "ENGINE_NOT_FOUND",
            "ENGINE_NOT_RUNNING",
            "PORT_EXHAUSTION",
            "BOOT_TIMEOUT",
        ),
    ),
    Route(
        "DELETE",
        "/engines/{user_id}",
        destroy,
        Access.PLATFORM,
        "Destroy an engine: container, data, port and row.",
        answers=(wire.Destroyed,),
        body=wire.Nothing,
        errors=(*CHANGING, "ENGINE_NOT_FOUND"),
    ),
    Route(
        "GET",
        "/engines/{user_id}/activity",
        activity,
        Access.PLATFORM,
        "Why the engine is awake or asleep.",
        answers=(wire.Activity,),
        errors=("ENGINE_NOT_FOUND",),
    ),
)
