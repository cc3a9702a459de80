"""Durations for Prometheus: in each bucket what took no longer than its bound."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginegate.metrics import ADMIT_BOUNDS_S, Histogram


@pytest.mark.parametrize("place", range(len(ADMIT_BOUNDS_S)))
def test_a_bound_belongs_to_its_bucket(place: int) -> None:
    """`le` means less or equal; just above it is the next one's."""
    bound_s = ADMIT_BOUNDS_S[place]
    histogram = Histogram(ADMIT_BOUNDS_S)
    histogram.add(bound_s)
    histogram.add(bound_s * 1.001)
    assert histogram.buckets[place : place + 2] == [1, 1]


@given(st.lists(st.floats(0, 20)))
def test_each_line_counts_what_took_no_longer(taken_s: list[float]) -> None:
    """Whatever was added, in whatever order; the last line counts all."""
    histogram = Histogram(ADMIT_BOUNDS_S)
    for seconds in taken_s:
        histogram.add(seconds)
    told = dict(histogram.cumulative())
    for bound_s in ADMIT_BOUNDS_S:
        assert told[str(bound_s)] == sum(seconds <= bound_s for seconds in taken_s)
    assert told["+Inf"] == histogram.count == len(taken_s)
    assert histogram.sum_s == sum(taken_s, start=0.0)
