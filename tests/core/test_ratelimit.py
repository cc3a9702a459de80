"""The window admits its limit in any 60 s, not one call more, and not one less."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginegate.ratelimit import CHUNK, NS_PER_S, WINDOW_NS, SlidingWindow, retry_after

STEPS = st.lists(
    st.one_of(st.integers(0, 3), st.integers(0, 70 * NS_PER_S), st.just(WINDOW_NS)), max_size=60
)


def called(window: SlidingWindow, now_ns: int, limit: int) -> int | None:
    wait = window.wait_ns(now_ns, limit)
    if wait == 0:
        window.add(now_ns)
    return wait


def test_calls_up_to_the_limit_go_on_at_once() -> None:
    """A burst may use the whole limit; only the next call waits."""
    window = SlidingWindow()
    assert [called(window, 5, 3) for _ in range(4)] == [0, 0, 0, WINDOW_NS]


def test_a_call_counts_for_exactly_sixty_seconds() -> None:
    """One nanosecond before it still blocks, at the full minute it is gone."""
    window = SlidingWindow()
    window.add(100)
    assert window.wait_ns(100 + WINDOW_NS - 1, 1) == 1
    assert window.wait_ns(100 + WINDOW_NS, 1) == 0


def test_a_refused_call_does_not_count() -> None:
    """Knocking at the door does not keep it shut."""
    window = SlidingWindow()
    called(window, 0, 1)
    for now_ns in range(1, WINDOW_NS, WINDOW_NS // 7):
        assert called(window, now_ns, 1) == WINDOW_NS - now_ns
    assert called(window, WINDOW_NS, 1) == 0


def test_the_wait_is_for_the_place_that_comes_free() -> None:
    """The oldest call that is in the way decides, not the newest."""
    window = SlidingWindow()
    for second in (0, 10, 20):
        window.add(second * NS_PER_S)
    assert window.wait_ns(30 * NS_PER_S, 3) == 30 * NS_PER_S
    assert window.wait_ns(30 * NS_PER_S, 2) == 40 * NS_PER_S
    assert window.wait_ns(30 * NS_PER_S, 1) == 50 * NS_PER_S


def test_a_limit_of_zero_means_never() -> None:
    """No wait would help, so none is named, whether calls are in the window or not."""
    window = SlidingWindow()
    assert window.wait_ns(0, 0) is None
    window.add(0)
    assert window.wait_ns(1, 0) is None


def test_a_limit_lowered_and_raised_again_forgets_nothing() -> None:
    """Calls made under another limit stay in until their minute is over."""
    window = SlidingWindow()
    for _ in range(5):
        called(window, 0, 5)
    assert window.wait_ns(NS_PER_S, 2) == WINDOW_NS - NS_PER_S
    assert window.wait_ns(NS_PER_S, 0) is None
    assert window.wait_ns(NS_PER_S, 5) == WINDOW_NS - NS_PER_S
    assert called(window, NS_PER_S, 6) == 0
    assert window.wait_ns(NS_PER_S, 6) == WINDOW_NS - NS_PER_S
    assert window.wait_ns(WINDOW_NS, 1) == NS_PER_S


def test_an_idle_window_can_be_dropped() -> None:
    """A new one in its place would answer the same."""
    window = SlidingWindow()
    assert window.idle(0)
    window.add(0)
    assert not window.idle(WINDOW_NS - 1)
    assert window.idle(WINDOW_NS)


@given(STEPS, st.integers(1, 5))
def test_no_sixty_seconds_ever_hold_more_than_the_limit(steps: list[int], limit: int) -> None:
    """Whatever the times of the calls, each one admitted finds less than the limit before it."""
    window, now_ns, admitted = SlidingWindow(), 0, list[int]()
    for step in steps:
        now_ns += step
        inside = [at for at in admitted if at > now_ns - WINDOW_NS]
        wait = called(window, now_ns, limit)
        assert (wait == 0) == (len(inside) < limit)
        if wait == 0:
            admitted.append(now_ns)


@given(STEPS, st.lists(st.integers(0, 6), min_size=60, max_size=60))
def test_the_limit_of_the_moment_is_kept(steps: list[int], limits: list[int]) -> None:
    """With a limit that changes from call to call the window stays exact."""
    window, now_ns, admitted = SlidingWindow(), 0, list[int]()
    for step, limit in zip(steps, limits, strict=False):
        now_ns += step
        inside = [at for at in admitted if at > now_ns - WINDOW_NS]
        if called(window, now_ns, limit) == 0:
            assert len(inside) < limit
            admitted.append(now_ns)
        else:
            assert len(inside) >= limit
        assert window.idle(now_ns) == (not [at for at in admitted if at > now_ns - WINDOW_NS])


@given(STEPS, st.integers(1, 5))
def test_who_waits_exactly_as_told_is_admitted(steps: list[int], limit: int) -> None:
    """And one nanosecond less would not have been enough."""
    window, now_ns = SlidingWindow(), 0
    for step in steps:
        now_ns += step
        wait = called(window, now_ns, limit)
        assert wait is not None
        if wait:
            assert window.wait_ns(now_ns + wait - 1, limit) == 1
            now_ns += wait
            assert called(window, now_ns, limit) == 0


def test_many_calls_are_kept_as_exactly_as_few() -> None:
    """Also where they are more than lie in one chunk, and chunks are given back."""
    window, admitted, limit = SlidingWindow(), list[int](), 3 * CHUNK // 2
    for number in range(8 * CHUNK):
        now_ns = number * WINDOW_NS // (2 * CHUNK)
        admitted = [at for at in admitted if at > now_ns - WINDOW_NS]
        expected = 0 if len(admitted) < limit else admitted[-limit] + WINDOW_NS - now_ns
        assert window.wait_ns(now_ns, limit) == expected
        assert window.take(now_ns, limit) is (expected == 0)
        if expected == 0:
            admitted.append(now_ns)
    assert window.wait_ns(now_ns + WINDOW_NS, 1) == 0


def test_memory_goes_by_the_calls_in_the_window() -> None:
    """An hour of traffic leaves no more behind than its last minute."""
    window = SlidingWindow()
    for second in range(3600):
        called(window, second * NS_PER_S, 1000)
    assert window._count == 60
    assert sum(map(len, window._chunks)) <= 60 + CHUNK


@pytest.mark.parametrize(
    ("wait_ns", "exact", "whole"),
    [
        (1, 1e-9, 1),
        (NS_PER_S, 1.0, 1),
        (NS_PER_S + 1, 1.000000001, 2),
        (1_500_000_000, 1.5, 2),
        (WINDOW_NS, 60.0, 60),
    ],
)
def test_the_wait_is_told_exactly_and_in_whole_seconds(
    wait_ns: int, exact: float, whole: int
) -> None:
    """`Retry-After` takes whole seconds only, and at least one."""
    assert retry_after(wait_ns) == (pytest.approx(exact, rel=1e-15), whole)


@given(st.integers(1, WINDOW_NS))
def test_the_wait_is_never_rounded_down(wait_ns: int) -> None:
    """Who waits the seconds that were told has waited the nanoseconds that were meant."""
    exact, whole = retry_after(wait_ns)
    assert Fraction(exact) >= Fraction(wait_ns, NS_PER_S)
    assert exact - wait_ns / NS_PER_S <= 1e-14
    assert whole - 1 < exact <= whole


@given(STEPS, st.integers(0, 5))
def test_taking_a_place_is_asking_and_counting_in_one(steps: list[int], limit: int) -> None:
    """Both ways let the same calls through."""
    asked, taken, now_ns = SlidingWindow(), SlidingWindow(), 0
    for step_ns in steps:
        now_ns += step_ns
        assert taken.take(now_ns, limit) is (called(asked, now_ns, limit) == 0)
