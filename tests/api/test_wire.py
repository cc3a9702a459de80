"""What travels has one form: times, numbers, and the bytes of the warm answer."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from enginegate.admission import Admitted, Refused
from enginegate.api import wire
from enginegate.model import Policy
from tests.api.rig import Gate


@pytest.mark.parametrize(
    ("at_ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_777_293_296_000, "2026-04-27T12:34:56.000Z"),
        (1_777_293_296_007, "2026-04-27T12:34:56.007Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
    ],
)
def test_times_are_rfc_3339_in_utc_with_milliseconds(at_ms: int, text: str) -> None:
    """Every timestamp has the same 24 characters, whatever the machine's time zone."""
    assert wire.timestamp(at_ms) == text


def test_a_time_between_two_milliseconds_is_rounded_to_the_asked_side() -> None:
    """A filter never lets in what lies outside it by less than a millisecond."""
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=1500)

    assert wire.milliseconds(at) == 1
    assert wire.milliseconds(at, up=True) == 2


@pytest.mark.parametrize(("value", "text"), [(900.0, b"900"), (0.25, b"0.25"), (0.0, b"0")])
def test_whole_numbers_leave_without_a_fraction(value: float, text: bytes) -> None:
    """900 reads better than 900.0, and a fraction is kept."""
    assert msgspec.json.encode(wire.number(value)) == text


def test_a_remaining_lease_shows_no_noise() -> None:
    """Subtracting two clock readings must not turn 900 s into 899.9999999999."""
    assert wire.lease(1000.3 + 900 - 1000.3) == 900


async def test_the_warm_answer_is_the_answer_of_the_long_road(gate: Gate) -> None:
    """Both roads to an admit say the same, byte for byte."""
    await gate.engine()
    live = gate.live()
    answer = Admitted(live=live, action="none", waited_ms=0, lease_s=live.lease_s)

    assert wire.encode_admit(live, live.lease_s) == msgspec.json.encode(wire.admit_answer(answer))


async def test_the_warm_answer_has_the_engine_with_exactly_eight_keys(gate: Gate) -> None:
    """What a product needs to talk to the engine, and nothing of our inside."""
    await gate.engine()
    body = msgspec.json.decode(wire.encode_admit(gate.live(), 900.0))

    assert list(body) == ["admitted", "engine", "action", "waited_ms", "lease_s"]
    assert list(body["engine"]) == [
        "engine_id",
        "user_id",
        "status",
        "url",
        "api_key",
        "engine_version",
        "created_at",
        "last_health_at",
    ]
    assert body["engine"]["api_key"].startswith("sk-eg-")


def test_a_refusal_names_its_reason_and_no_engine() -> None:
    """A refused caller has the same four fields every time."""
    body = msgspec.to_builtins(wire.admit_answer(Refused("engine_stopped")))

    assert body == {
        "admitted": False,
        "engine": None,
        "reason": "engine_stopped",
        "retry_after_s": None,
    }


def test_a_policy_shows_the_limits_it_has() -> None:
    """No limit is no field; what was put in comes out."""
    policy = wire.policy(Policy(max_engines=0, idle_sleep_s=60.0))

    assert msgspec.json.encode(policy) == b'{"max_engines":0,"idle_sleep_s":60}'
