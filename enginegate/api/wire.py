"""What travels: the bodies of requests and answers, and how the fleet is turned into them.

These types are the API's own, never the model's: a field that is renamed inside stays
as it is out here. Times leave as RFC 3339 in UTC with milliseconds, numbers of seconds
that are whole leave without a fraction.
"""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from enginegate import model
from enginegate.admission import ACTION_OF, Admitted, Options, Refused
from enginegate.model import Status
from enginegate.policy import COUNT_MAX, SECONDS_MAX
from enginegate.registry import LiveEngine, LiveProduct

USER_ID_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._@|:+=~-]{0,127}$"
SLUG_PATTERN = "^[a-z0-9][a-z0-9-]{0,62}$"
NAME_MAX = 200
PAGE_MAX = 1000
OFFSET_MAX = 2**53 - 1
MICROSECONDS = 6  # digits of a remaining lease; beyond them is only the noise of subtraction

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)

REASONS = (
    "engine_not_found",
    "engine_sleeping",
    "engine_stopped",
    "engine_provisioning",
    "engine_waking",
    "engine_restarting",
    "engine_unhealthy",
    "engine_destroying",
)


def shown(**schema: Any) -> Meta:
    """Return what a type's schema says beyond the type; checked elsewhere, or only told."""
    return Meta(extra_json_schema=schema)


Timestamp = Annotated[str, shown(format="date-time", examples=["2026-04-27T12:34:56.000Z"])]
Uuid = Annotated[str, shown(format="uuid", examples=["5c2f8b1e-6a0d-4f57-9c3e-2f4b7f0a1d11"])]
UserId = Annotated[str, shown(pattern=USER_ID_PATTERN, examples=["demo-user-001"])]
Slug = Annotated[str, shown(pattern=SLUG_PATTERN, examples=["demo"])]
Count = Annotated[float, shown(multipleOf=1, minimum=0, maximum=COUNT_MAX)]  # 3.0 is whole
Seconds = Annotated[float, shown(minimum=0, maximum=SECONDS_MAX)]
LeaseS = Annotated[float, shown(minimum=0, description="0: it never sleeps.", examples=[900])]
Limit = Annotated[int, Meta(ge=1, le=PAGE_MAX)]
EngineUrl = Annotated[str, shown(format="uri", examples=["http://127.0.0.1:9001"])]
EngineKey = Annotated[str, shown(examples=["sk-eg-…"])]
PlatformKey = Annotated[str, shown(examples=["pk-eg-…"])]


class Body(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is sent to us: a field we do not know is a mistake worth telling."""


class Nothing(Body, frozen=True):
    """No field is known here; an empty body will do."""


class ProvisionRequest(Body, frozen=True):
    user_id: UserId
    engine_version: str | UnsetType = UNSET


class StartRequest(Body, frozen=True):
    engine_version: str | UnsetType = UNSET


class SleepRequest(Body, frozen=True):
    force: bool = False


class AdmitRequest(Options, frozen=True):
    """All optional; `wait_s` null: as long as the work takes."""


class Listed(Struct, frozen=True, kw_only=True):
    """An engine in a list: everything but its key."""

    engine_id: Uuid
    user_id: UserId
    status: Status
    url: EngineUrl
    engine_version: str
    created_at: Timestamp
    last_health_at: Timestamp | None


class Engine(Struct, frozen=True, kw_only=True):
    """An engine; check `status` before using `url` and `api_key`."""

    engine_id: Uuid
    user_id: UserId
    status: Status
    url: EngineUrl
    api_key: EngineKey
    engine_version: str
    created_at: Timestamp
    last_health_at: Timestamp | None


class Engines(Struct, frozen=True, kw_only=True):
    engines: list[Listed]
    total: int


class EnginesQuery(Struct, frozen=True, kw_only=True):
    status: Status | UnsetType = UNSET
    limit: Limit = 100
    offset: Annotated[int, Meta(ge=0, le=OFFSET_MAX)] = 0


class Provisioned(Struct, frozen=True, kw_only=True):
    engine_id: Uuid
    user_id: UserId
    status: Status = Status.RUNNING
    url: EngineUrl
    api_key: EngineKey


class AdmittedAnswer(Struct, frozen=True, kw_only=True):
    """Go on, to this engine; it does not sleep for idleness for `lease_s` from now."""

    admitted: Annotated[bool, shown(const=True)] = True
    engine: Engine
    action: Annotated[str, shown(enum=["none", *ACTION_OF.values()])] = "none"
    waited_ms: Annotated[float, shown(minimum=0)] = 0
    lease_s: LeaseS


class RefusedAnswer(Struct, frozen=True, kw_only=True):
    """Not now; `retry_after_s` null: asking again changes nothing by itself."""

    admitted: Annotated[bool, shown(const=False)] = False
    engine: None = None
    reason: Annotated[str, shown(enum=[*REASONS])]
    retry_after_s: Annotated[float, shown(minimum=0)] | None


class Started(Struct, frozen=True, kw_only=True):
    status: Status = Status.RUNNING
    url: EngineUrl


class Stopped(Struct, frozen=True):
    status: Status = Status.STOPPED


class Slept(Struct, frozen=True):
    status: Status = Status.SLEEPING


class Touched(Struct, frozen=True, kw_only=True):
    status: Status = Status.RUNNING
    lease_s: LeaseS


class KeyRotated(Struct, frozen=True, kw_only=True):
    engine_id: Uuid
    api_key: EngineKey


class Destroyed(Struct, frozen=True, kw_only=True):
    status: Annotated[str, shown(const="destroyed")] = "destroyed"
    engine_id: Uuid


class SignalSeen(Struct, frozen=True, kw_only=True):
    kind: str
    value: str | float | bool | None
    at: Timestamp


class LastTransition(Struct, frozen=True, kw_only=True):
    status: Status
    at: Timestamp
    reason: str


class Activity(Struct, frozen=True, kw_only=True):
    """Why an engine is awake or asleep. Lease fields are null unless it runs and may sleep.

    `tier` is null unless it sleeps, and `planned_stop_at` unless it is frozen and will be
    stopped. `signals` are what was seen last of each kind; `lease` is the last use (an
    admit, a touch, or coming into service), its value the lease in seconds. `vetoes` kept
    it awake lately, the newest last.
    """

    engine_id: Uuid
    status: Status
    lease_s: LeaseS | None
    lease_until: Timestamp | None
    planned_sleep_at: Timestamp | None
    tier: Annotated[str, shown(enum=["frozen", "stopped"])] | None
    planned_stop_at: Timestamp | None
    signals: list[SignalSeen]
    vetoes: list[SignalSeen]
    last_transition: LastTransition


# Products


class Policy(Body, frozen=True, omit_defaults=True):
    """What a product may do; a field left out: no limit of its own."""

    max_engines: Count | None = None
    rate_limit_rpm: Count | None = None
    user_rate_limit_rpm: Count | None = None
    idle_sleep_s: Seconds | None = None


class RegisterRequest(Body, frozen=True):
    slug: Slug
    display_name: Annotated[str, Meta(max_length=NAME_MAX)]
    policy: Policy = Policy()


class PolicyRequest(Body, frozen=True):
    policy: Policy


class RotatePlatformKeyRequest(Body, frozen=True):
    """`overlap_s`: for so long the old key works too."""

    overlap_s: Annotated[float, Meta(ge=0, le=SECONDS_MAX)] = 0


class Registered(Struct, frozen=True, kw_only=True):
    product_id: Uuid
    slug: Slug
    platform_api_key: PlatformKey


class Product(Struct, frozen=True, kw_only=True):
    product_id: Uuid
    slug: Slug
    display_name: str
    policy: Policy
    created_at: Timestamp
    engines: int


class Products(Struct, frozen=True, kw_only=True):
    products: list[Product]
    total: int


class PolicyAnswer(Struct, frozen=True):
    policy: Policy


class PlatformKeyRotated(Struct, frozen=True, kw_only=True):
    product_id: Uuid
    platform_api_key: PlatformKey


class ProductDeleted(Struct, frozen=True, kw_only=True):
    status: Annotated[str, shown(const="deleted")] = "deleted"
    product_id: Uuid
    engines_destroyed: int


# Conversions


def timestamp(at_ms: int) -> str:
    """Return milliseconds since the epoch as RFC 3339 in UTC."""
    at = _EPOCH + timedelta(milliseconds=at_ms)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def milliseconds(at: datetime, *, up: bool = False) -> int:
    """Return a time as whole milliseconds since the epoch, rounded down or `up`."""
    since = at - _EPOCH
    return -(-since // _MS) if up else since // _MS


def number(value: float) -> float:
    """Return a whole number as an int: 900 reads better than 900.0."""
    return int(value) if value == int(value) else value


def lease(left_s: float) -> float:
    return number(round(left_s, MICROSECONDS))


def engine(live: LiveEngine) -> Engine:
    row = live.engine
    return Engine(
        engine_id=row.engine_id,
        user_id=row.user_id,
        status=row.status,
        url=live.url,
        api_key=live.api_key,
        engine_version=row.engine_version,
        created_at=timestamp(row.created_at_ms),
        last_health_at=_when(live.healthy_at_ms),
    )


def listed(live: LiveEngine) -> Listed:
    row = live.engine
    return Listed(
        engine_id=row.engine_id,
        user_id=row.user_id,
        status=row.status,
        url=live.url,
        engine_version=row.engine_version,
        created_at=timestamp(row.created_at_ms),
        last_health_at=_when(live.healthy_at_ms),
    )


def _when(at_ms: int | None) -> str | None:
    return None if at_ms is None else timestamp(at_ms)


def encode_admit(live: LiveEngine, lease_s: float) -> bytes:
    """Return the answer to the admit of a running engine, ready to be sent."""
    return msgspec.json.encode(AdmittedAnswer(engine=engine(live), lease_s=number(lease_s)))


def admit_answer(answer: Admitted | Refused) -> AdmittedAnswer | RefusedAnswer:
    if isinstance(answer, Refused):
        retry_after_s = answer.retry_after_s
        return RefusedAnswer(
            reason=answer.reason,
            retry_after_s=None if retry_after_s is None else number(retry_after_s),
        )
    return AdmittedAnswer(
        engine=engine(answer.live),
        action=answer.action,
        waited_ms=number(answer.waited_ms),
        lease_s=lease(answer.lease_s),
    )


def policy(held: model.Policy) -> Policy:
    sleep_s = held.idle_sleep_s
    return Policy(
        max_engines=held.max_engines,
        rate_limit_rpm=held.rate_limit_rpm,
        user_rate_limit_rpm=held.user_rate_limit_rpm,
        idle_sleep_s=None if sleep_s is None else number(sleep_s),
    )


def product(live: LiveProduct) -> Product:
    held = live.product
    return Product(
        product_id=held.product_id,
        slug=held.slug,
        display_name=held.display_name,
        policy=policy(held.policy),
        created_at=timestamp(held.created_at_ms),
        engines=len(live.engines),
    )
