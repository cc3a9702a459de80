"""The audit trail replayed with another idle time."""

from typing import Any

import pytest

from enginegate.whatif import HOUR_S, Comparison, Happening, simulate


def at(at_s: float, action: str, **told: Any) -> Happening:
    return Happening(
        at_s=at_s,
        engine_id=told.pop("engine_id", "e-1"),
        action=action,
        ok=told.pop("ok", True),
        **told,
    )


def slept(at_s: float, unused_s: float | None = 900, **told: Any) -> Happening:
    return at(at_s, "sleep", reason="idle", unused_s=unused_s, **told)


def replayed(*trail: Happening, sleep_after_s: float, until_s: float = 10_000) -> Comparison:
    return simulate(
        sorted(trail, key=lambda one: one.at_s),
        sleep_after_s=sleep_after_s,
        since_s=0,
        until_s=until_s,
    )


DAY = (
    at(0, "provision"),
    slept(1900),
    at(2000, "wake", took_s=0.5),
    slept(4000),
    at(7000, "wake", took_s=0.02),
    at(8000, "stop"),
)
"""Used until 1000, from 2000 to 3100, and from 7000 on; asleep for 100 s and for 3000 s."""


def test_with_the_idle_time_of_then_it_is_what_happened() -> None:
    """Replaying changes nothing by itself."""
    found = replayed(*DAY, sleep_after_s=900)
    assert found.happened.sleeps == found.simulated.sleeps == 2
    assert found.happened.wakes == found.simulated.wakes == 2
    assert found.happened.waited_s == found.simulated.waited_s == pytest.approx(0.52)
    assert found.happened.awake_h == found.simulated.awake_h == pytest.approx(4900 / HOUR_S)
    assert found.saved_h == 0


def test_a_longer_idle_time_spares_the_short_sleeps() -> None:
    """A user who came back after 100 s of sleep had not waited at all."""
    found = replayed(*DAY, sleep_after_s=1200)
    assert (found.simulated.sleeps, found.simulated.wakes) == (1, 1)
    assert found.simulated.waited_s == pytest.approx(0.02)
    assert found.saved_h == pytest.approx(-(100 + 300) / HOUR_S)
    assert found.simulated.wakes_at_most == 1


def test_a_shorter_idle_time_saves_and_says_what_it_cannot_know() -> None:
    """Each sleep begins earlier; how many more there were, nobody wrote down."""
    found = replayed(*DAY, sleep_after_s=300)
    assert (found.simulated.sleeps, found.simulated.wakes) == (2, 2)
    assert found.saved_h == pytest.approx(1200 / HOUR_S)
    assert found.simulated.wakes_at_most == 2 + 1000 // 300 + 1100 // 300


def test_zero_is_never() -> None:
    """Without sleep all waits go, and all of the time asleep is time awake."""
    found = replayed(*DAY, sleep_after_s=0)
    assert (found.simulated.sleeps, found.simulated.wakes, found.simulated.waited_s) == (0, 0, 0)
    assert found.simulated.awake_h == pytest.approx(8000 / HOUR_S)


def test_what_ended_otherwise_counts_as_used_to_its_end() -> None:
    """A stop, a failure, a sleep on request, the end of the trail: no last use is known."""
    found = replayed(
        at(0, "provision"),
        at(100, "sleep", reason="request"),
        at(200, "start", tier="frozen", took_s=1),
        at(300, "health_failed", ok=False),
        at(400, "auto_restart_success"),
        at(500, "stop"),
        at(600, "start"),
        slept(700, None),
        sleep_after_s=1,
        until_s=1000,
    )
    assert found.simulated.awake_h == found.happened.awake_h == found.unknown_h
    assert found.happened.awake_h == pytest.approx(400 / HOUR_S)
    assert (found.happened.wakes, found.happened.waited_s, found.happened.sleeps) == (1, 1, 1)
    assert found.simulated.wakes == 1


@pytest.mark.parametrize(
    ("first", "awake_s"),
    [
        (slept(100, 50), 100),
        (at(100, "wake"), 100),
        (at(100, "stop"), 100),
        (at(100, "provision"), 100),
        (at(100, "destroy"), 100),
    ],
)
def test_the_state_before_the_first_entry_follows_from_it(first: Happening, awake_s: float) -> None:
    """Who falls asleep was awake; who wakes was not."""
    found = replayed(first, sleep_after_s=50, until_s=200)
    assert found.happened.awake_h == pytest.approx(awake_s / HOUR_S)


def test_entries_that_change_nothing_are_passed_over() -> None:
    """Vetoes, failed sleeps, the stop of a long sleeper, denials."""
    found = replayed(
        *DAY,
        at(500, "sleep_vetoed", ok=False),
        at(600, "sleep", ok=False),
        at(5000, "sleep", tier="stopped", reason="stop_after"),
        at(6000, "admit_denied", ok=False),
        at(100, "health_check", engine_id="e-2"),
        sleep_after_s=900,
    )
    assert (found.happened.sleeps, found.engines) == (2, 2)
    assert found.saved_h == 0


def test_engines_are_told_apart() -> None:
    """Two at the same time are two."""
    other = [
        Happening(
            at_s=one.at_s,
            engine_id="e-2",
            action=one.action,
            ok=True,
            took_s=one.took_s,
            reason=one.reason,
            unused_s=one.unused_s,
        )
        for one in DAY
    ]
    alone, both = (
        replayed(*DAY, sleep_after_s=300),
        replayed(*DAY, *other, sleep_after_s=300),
    )
    assert both.saved_h == pytest.approx(2 * alone.saved_h)
    assert both.engines == 2


def test_an_empty_trail_is_no_fault() -> None:
    """Nothing happened, nothing would have."""
    found = replayed(sleep_after_s=300)
    assert (found.engines, found.saved_h, found.unknown_h) == (0, 0, 0)
