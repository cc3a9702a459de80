"""Metrics as a fold over facts, and the counters of the hot path. Pure: no clock, no I/O."""

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterator

from msgspec import Struct

from enginegate import facts as f
from enginegate.model import Counters, Sample

HOUR_MS = 3_600_000
SAMPLES_MAX = 100_000  # bounds memory and snapshot under a crash storm
SAMPLES_A_RECORD = 20  # makes it as long as an engine's
MINUTE_S = 60

_KIND_OF_BOOT = {"provision": "provision", "start": "start", "auto_restart": "restart"}
_BOOTS = frozenset(_KIND_OF_BOOT.values())
_KIND_OF: dict[type[f.AnyFact], str] = {
    f.Claimed: "provision",
    f.Woken: "wake",
    f.Slept: "sleep",
    f.Destroyed: "destroy",
}
_ONLY_OF_AN_HOUR: tuple[type[f.AnyFact], ...] = (f.Woken, f.Slept)  # in no total


class Tally:
    """What one product's facts add up to: totals, and samples of the last hour."""

    __slots__ = ("samples", "total_destroys", "total_provisions")

    def __init__(self) -> None:
        self.total_provisions = 0
        self.total_destroys = 0
        self.samples: deque[Sample] = deque(maxlen=SAMPLES_MAX)

    @property
    def empty(self) -> bool:
        return not (self.total_provisions or self.total_destroys or self.samples)

    def count(self, fact: f.AnyFact, *, since_ms: int = 0) -> str | None:
        """Fold one fact in and return the kind it counted as, None for none.

        What is not after `since_ms` is counted in the totals alone.
        """
        if fact.at_ms <= since_ms and type(fact) in _ONLY_OF_AN_HOUR:
            return None  # a start folds many of these
        kind = kind_of(fact)
        if kind == "provision":
            self.total_provisions += 1
        elif kind == "destroy":
            self.total_destroys += 1
        if kind is not None and fact.at_ms > since_ms:
            self.samples.append(Sample(fact.at_ms, kind, fact.duration_ms))
            if self.samples[0].at_ms <= fact.at_ms - HOUR_MS:
                self._forget(fact.at_ms - HOUR_MS, most=2)  # so that no reader has all to forget
        return kind

    def last_hour(self, now_ms: int) -> list[Sample]:
        """Return the samples of the last hour, and forget those before."""
        self._forget(now_ms - HOUR_MS, most=SAMPLES_MAX)
        return list(self.samples)

    def _forget(self, until_ms: int, *, most: int) -> None:
        """Drop the oldest samples up to this time, but no more than `most`."""
        samples = self.samples
        while most and samples and samples[0].at_ms <= until_ms:
            samples.popleft()
            most -= 1

    def counters(self, product_id: str, now_ms: int) -> Iterator[Counters]:
        """Yield it as records, the same totals in each: one with all samples would be long."""
        samples = self.last_hour(now_ms)
        for first in range(0, max(len(samples), 1), SAMPLES_A_RECORD):
            yield Counters(
                product_id=product_id,
                total_provisions=self.total_provisions,
                total_destroys=self.total_destroys,
                samples=tuple(samples[first : first + SAMPLES_A_RECORD]),
            )

    def absorb(self, other: "Tally") -> None:
        """Take over the counts of a product that is going."""
        self.total_provisions += other.total_provisions
        self.total_destroys += other.total_destroys
        self.samples = deque(
            sorted((*self.samples, *other.samples), key=lambda s: s.at_ms), maxlen=SAMPLES_MAX
        )

    def restore(self, counters: Counters) -> None:
        self.total_provisions = counters.total_provisions
        self.total_destroys = counters.total_destroys
        self.samples.extend(counters.samples)


def kind_of(fact: f.AnyFact) -> str | None:
    """Return what the fact counts as in metrics, None where it counts as nothing."""
    kind = _KIND_OF.get(type(fact))
    if kind is not None:
        return kind
    if isinstance(fact, f.Booted):
        return _KIND_OF_BOOT[fact.via]
    return "crash" if isinstance(fact, f.Failed) and fact.during == "running" else None


class Summary(Struct, frozen=True, kw_only=True):
    """The answer of `GET /metrics`; `_1h` and averages (ms) are over the last hour."""

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


def summary(tallies: list[Tally], traffic: list["Traffic"], now_ms: int) -> Summary:
    """Add tallies and traffic of the asked products up."""
    samples = [sample for tally in tallies for sample in tally.last_hour(now_ms)]
    count = Counter(sample.kind for sample in samples)
    denials: Counter[str] = Counter()
    for flow in traffic:
        denials.update(flow.denials_1m())
    return Summary(
        provisions_1h=count["provision"],
        crashes_1h=count["crash"],
        restarts_1h=count["restart"],
        avg_boot_ms=_average(samples, _BOOTS),
        total_provisions=sum(tally.total_provisions for tally in tallies),
        total_destroys=sum(tally.total_destroys for tally in tallies),
        admits_1m=sum(flow.admits_1m() for flow in traffic),
        denials_1m=dict(denials),
        wakes_1h=count["wake"],
        sleeps_1h=count["sleep"],
        avg_wake_ms=_average(samples, frozenset({"wake"})),
    )


def _average(samples: list[Sample], kinds: frozenset[str]) -> float | None:
    took = [s.duration_ms for s in samples if s.kind in kinds and s.duration_ms is not None]
    return round(sum(took) / len(took), 3) if took else None


class Traffic:
    """Admits and denials of one product. The hot path only adds one to `admits`.

    `tick` is called once a second and keeps the totals of the last minute, so that
    "in the last minute" is a subtraction.
    """

    __slots__ = ("_history", "admits", "denials")

    def __init__(self) -> None:
        self.admits = 0
        self.denials: dict[str, int] = {}
        self._history: deque[tuple[int, dict[str, int]]] = deque(maxlen=MINUTE_S)

    def deny(self, reason: str) -> None:
        self.denials[reason] = self.denials.get(reason, 0) + 1

    def tick(self) -> None:
        last = self._history[-1] if self._history else None
        if last is None or last[0] != self.admits or last[1] != self.denials:
            last = (self.admits, dict(self.denials))
        self._history.append(last)  # an unchanged second costs one reference

    def admits_1m(self) -> int:
        return self.admits - (self._history[0][0] if self._full() else 0)

    def denials_1m(self) -> dict[str, int]:
        then = self._history[0][1] if self._full() else {}
        now = {reason: n - then.get(reason, 0) for reason, n in self.denials.items()}
        return {reason: n for reason, n in now.items() if n}

    def _full(self) -> bool:
        return len(self._history) == self._history.maxlen


class Histogram:
    """A cumulative histogram for Prometheus, of two bounds at least.

    `add` is one bisection and two additions; what is within the lowest two bounds, as nearly
    all warm admits are, is not bisected: a module whose code is in no cache costs more than
    all the rest.
    """

    __slots__ = ("_first_s", "_second_s", "bounds_s", "buckets", "sum_s")

    def __init__(self, bounds_s: tuple[float, ...]) -> None:
        self.bounds_s = bounds_s
        self._first_s, self._second_s = bounds_s[:2]
        self.buckets = [0] * (len(bounds_s) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        if seconds <= self._first_s:
            self.buckets[0] += 1
        elif seconds <= self._second_s:
            self.buckets[1] += 1
        else:
            self.buckets[bisect_left(self.bounds_s, seconds)] += 1
        self.sum_s += seconds

    @property
    def count(self) -> int:
        return sum(self.buckets)

    def cumulative(self) -> list[tuple[str, float]]:
        """Return (`le`, count) pairs as Prometheus wants them."""
        total = 0.0
        pairs = []
        for bound, count in zip((*map(str, self.bounds_s), "+Inf"), self.buckets, strict=True):
            total += count
            pairs.append((bound, total))
        return pairs


ADMIT_BOUNDS_S = (0.000005, 0.00001, 0.00002, 0.00005, 0.0001, 0.001, 0.01, 0.1, 1.0, 10.0)
WORK_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
LAG_BOUNDS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
SYNC_BOUNDS_S = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 1.0)


class Meters:
    """What the Prometheus page shows beyond the fold over facts; for the whole process."""

    def __init__(self) -> None:
        self.admit_s: dict[str, Histogram] = {}
        self.work_s: dict[tuple[str, str], Histogram] = {}
        self.loop_lag_s = Histogram(LAG_BOUNDS_S)
        self.journal_sync_s = Histogram(SYNC_BOUNDS_S)
        self.journal_bytes = 0
        self.backend_calls: Counter[tuple[str, str]] = Counter()
        self.events_at: float | None = None
        self.orphans = 0

    def admit(self, outcome: str) -> Histogram:
        return self.admit_s.setdefault(outcome, Histogram(ADMIT_BOUNDS_S))

    def work(self, verb: str, outcome: str, seconds: float) -> None:
        """Count one operation: `verb`, how it ended, and how long it took."""
        self.work_s.setdefault((verb, outcome), Histogram(WORK_BOUNDS_S)).add(seconds)

    def called(self, operation: str, outcome: str) -> None:
        """Count one call of the backend."""
        self.backend_calls[operation, outcome] += 1

    def synced(self, seconds: float, size: int) -> None:
        self.journal_sync_s.add(seconds)
        self.journal_bytes += size
