"""Restarts come quickly at first and then ever more rarely, up to a bound."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginegate.backoff import wait_s


def test_the_wait_doubles_up_to_the_bound() -> None:
    """With the defaults: eight attempts in a bit over twenty minutes."""
    waits = [wait_s(attempt, base_s=5, max_s=300) for attempt in range(1, 9)]
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300]


def test_a_base_of_zero_means_at_once() -> None:
    """An operator may ask for restarts without a wait."""
    assert wait_s(7, base_s=0, max_s=300) == 0


def test_base_and_bound_may_be_the_same() -> None:
    """Then every wait is the same."""
    assert {wait_s(attempt, base_s=2.5, max_s=2.5) for attempt in range(1, 99)} == {2.5}


@given(st.integers(1, 10**9), st.floats(0.001, 1e6), st.floats(1e6, 1e9))
def test_any_number_of_attempts_has_a_wait(attempt: int, base_s: float, max_s: float) -> None:
    """It never exceeds the bound, never undercuts the base and never shrinks."""
    wait = wait_s(attempt, base_s=base_s, max_s=max_s)
    assert base_s <= wait <= max_s
    assert wait <= wait_s(attempt + 1, base_s=base_s, max_s=max_s)


@pytest.mark.parametrize(("attempt", "base_s"), [(0, 1.0), (1, -1.0), (1, 11.0)])
def test_an_impossible_question_is_a_bug(attempt: int, base_s: float) -> None:
    """Attempts count from 1, and the base lies between 0 and the bound."""
    with pytest.raises(AssertionError):
        wait_s(attempt, base_s=base_s, max_s=10)
