"""How to measure: calls in nanoseconds, medians of interleaved rounds, percentiles."""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

from bench.results import Figure, Goal


def nanoseconds(work: Callable[[], object], *, calls: int) -> float:
    """Return the mean time of a call, in nanoseconds, with the loop's own ten or so."""
    turns = range(calls)
    began = time.perf_counter_ns()
    for _ in turns:
        work()
    return (time.perf_counter_ns() - began) / calls


def interleaved(
    work: Mapping[str, Callable[[], float]], *, rounds: int, progress: Callable[[str], None]
) -> dict[str, list[float]]:
    """Run all, one after the other, round after round; return what each gave in each round.

    What disturbs the machine for a while disturbs all of them, so that their ratio
    within a round says more than the ratio of two means. Every second round goes the
    other way round, for whoever comes later finds caches and clocks warm.
    """
    found: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds):
        names = [*work] if number % 2 == 0 else [*work][::-1]
        for name in names:
            progress(f"{name}, round {number + 1} of {rounds}")
            found[name].append(work[name]())
    return found


def figure(name: str, values: Sequence[float], unit: str, *, digits: int = 3) -> Figure:
    """Return the median of the rounds, with the spread."""
    return Figure(
        name=name,
        value=round(median(values), digits),
        unit=unit,
        low=round(min(values), digits),
        high=round(max(values), digits),
    )


def ratio(
    name: str,
    over: Sequence[float],
    under: Sequence[float],
    *,
    bound: float,
    guard: float,
    at_least: bool = False,
) -> Goal:
    """Return the median of the ratios of each round, as a goal."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    return Goal(
        name=name,
        value=round(median(ratios), 3),
        must="at least" if at_least else "at most",
        bound=bound,
        guard=guard,
        low=round(min(ratios), 3),
        high=round(max(ratios), 3),
    )


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of the (sorted) values does not exceed."""
    return values[min(int(len(values) * share), len(values) - 1)]
