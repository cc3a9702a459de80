"""What another idle time would have done: the audit trail replayed with it. Pure.

The trail has every sleep, wake, start and stop, but no warm admits. Of the time awake it
therefore tells only when the last use was, by the sleep for idleness that ended it
(`unused_s`); a stretch that ended otherwise counts as used to its end. With a longer idle
time the outcome follows. With a shorter one there may have been pauses between two uses
that would have been sleeps, too: so many at most as fit in, and none in what is printed.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from math import inf

from msgspec import Struct

HOUR_S = 3600.0

_UP = frozenset({"provision", "start", "wake", "auto_restart_success"})
_DOWN = frozenset({"stop", "destroy", "health_failed"})
_FAILS = frozenset({"provision", "start", "wake"})  # failed, they leave it down


class Happening(Struct, frozen=True, kw_only=True):
    """An entry of the trail, as far as it matters here; `at_s` since the epoch."""

    at_s: float
    engine_id: str
    action: str
    ok: bool
    took_s: float = 0.0
    reason: str = ""
    tier: str = ""
    unused_s: float | None = None


class Tally(Struct, kw_only=True):
    """`wakes_at_most` counts the pauses that may have been in stretches of use, too."""

    sleeps: int = 0
    wakes: int = 0
    wakes_at_most: int = 0
    waited_s: float = 0.0
    awake_h: float = 0.0


class Comparison(Struct, frozen=True, kw_only=True):
    """What happened, what would have, and the hours awake of which no last use is known."""

    engines: int
    happened: Tally
    simulated: Tally
    unknown_h: float

    @property
    def saved_h(self) -> float:
        return self.happened.awake_h - self.simulated.awake_h


class _Stretch(Struct, frozen=True, kw_only=True):
    """A time in one state: awake or not, and the entries that began and ended it."""

    awake: bool
    from_s: float
    until_s: float
    begun_by: Happening | None
    ended_by: Happening | None

    @property
    def idle(self) -> float | None:
        """For how long it had not been used when it fell asleep for idleness; None: unknown."""
        end = self.ended_by
        if not self.awake or end is None or end.action != "sleep" or end.reason != "idle":
            return None
        return None if end.unused_s is None else min(end.unused_s, self.until_s - self.from_s)


def simulate(
    trail: Iterable[Happening], *, sleep_after_s: float, since_s: float, until_s: float
) -> Comparison:
    """Replay entries (oldest first) of the given time with another idle time (0: never)."""
    engines: dict[str, list[Happening]] = {}
    for one in trail:
        engines.setdefault(one.engine_id, []).append(one)
    happened, simulated, unknown_s = Tally(), Tally(), 0.0
    for entries in engines.values():
        stretches = _stretches(entries, since_s, until_s)
        unknown_s += sum(s.until_s - s.from_s for s in stretches if s.awake and s.idle is None)
        _count(happened, stretches)
        _replay(simulated, stretches, sleep_after_s or inf)
    happened.wakes_at_most = happened.wakes
    return Comparison(
        engines=len(engines),
        happened=happened,
        simulated=simulated,
        unknown_h=unknown_s / HOUR_S,
    )


def _stretches(entries: Sequence[Happening], since_s: float, until_s: float) -> list[_Stretch]:
    """Cut one engine's time into stretches; what was before its first entry follows from that."""
    changes = list(_changes(entries))
    if not changes:
        return []
    (first, up), found = changes[0], []
    if first.action != "provision":
        found.append(
            _Stretch(
                awake=not up,
                from_s=min(since_s, first.at_s),
                until_s=first.at_s,
                begun_by=None,
                ended_by=first,
            )
        )
    ends = [*changes[1:], (None, False)]
    for (begin, awake), (end, _) in zip(changes, ends, strict=True):
        found.append(
            _Stretch(
                awake=awake,
                from_s=begin.at_s,
                until_s=max(until_s, begin.at_s) if end is None else end.at_s,
                begun_by=begin,
                ended_by=end,
            )
        )
    return found


def _changes(entries: Iterable[Happening]) -> Iterator[tuple[Happening, bool]]:
    """Yield the entries that put an engine into service or out of it, and which of the two."""
    up: bool | None = None
    for one in entries:
        now = _after(one)
        if now is not None and now is not up:
            up = now
            yield one, now


def _after(one: Happening) -> bool | None:
    """Return whether the engine is up after the entry; None: it says nothing about that."""
    if one.action in _UP and one.ok:
        return True
    if one.action == "sleep" and one.ok:
        return None if one.tier == "stopped" else False
    if one.action in _DOWN and (one.ok or one.action == "health_failed"):
        return False
    return False if one.action in _FAILS and not one.ok else None


def _count(tally: Tally, stretches: Sequence[_Stretch]) -> None:
    for one in stretches:
        if one.awake:
            tally.awake_h += (one.until_s - one.from_s) / HOUR_S
        if one.idle is not None or _by_idleness(one.ended_by):
            tally.sleeps += 1
    for before, after in pairwise(stretches):
        if _woken(before, after):
            assert after.begun_by is not None
            tally.wakes += 1
            tally.waited_s += after.begun_by.took_s


def _by_idleness(entry: Happening | None) -> bool:
    return entry is not None and entry.action == "sleep" and entry.reason == "idle"


def _woken(before: _Stretch, after: _Stretch) -> bool:
    """Whether one asleep came back: by a wake, or a start that was one."""
    begun = after.begun_by
    if before.awake or not after.awake or begun is None:
        return False
    return begun.action == "wake" or (begun.action == "start" and bool(begun.tier))


def _replay(tally: Tally, stretches: Sequence[_Stretch], sleep_after_s: float) -> None:
    for before, one, after in zip(
        [None, *stretches], stretches, [*stretches[1:], None], strict=False
    ):
        if one.awake:
            _replay_awake(tally, one, after, sleep_after_s)
        elif after is not None and _woken(one, after):
            assert after.begun_by is not None
            if (
                before is None
                or before.idle is None
                or _sleeps_at(before, sleep_after_s) < one.until_s
            ):
                tally.wakes += 1
                tally.wakes_at_most += 1
                tally.waited_s += after.begun_by.took_s


def _replay_awake(
    tally: Tally, one: _Stretch, after: _Stretch | None, sleep_after_s: float
) -> None:
    asleep_until_s = after.until_s if after is not None else one.until_s
    if one.idle is None:
        tally.sleeps += _by_idleness(one.ended_by)
        tally.awake_h += (one.until_s - one.from_s) / HOUR_S
        return
    sleeps_at_s = _sleeps_at(one, sleep_after_s)
    tally.sleeps += sleeps_at_s < asleep_until_s
    tally.awake_h += (min(sleeps_at_s, asleep_until_s) - one.from_s) / HOUR_S
    if sleep_after_s < one.idle:
        tally.wakes_at_most += int((one.until_s - one.idle - one.from_s) // sleep_after_s)


def _sleeps_at(one: _Stretch, sleep_after_s: float) -> float:
    assert one.idle is not None
    return one.until_s - one.idle + sleep_after_s
