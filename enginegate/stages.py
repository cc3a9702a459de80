"""How long the stages of a start took: a slow one explains itself in its log line."""

from enginegate.clock import Clock


class Stages:
    """A watch that runs from when it is made; each stage ends where the next begins."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began = self._last = clock.now()
        self._took_s: dict[str, float] = {}

    def ended(self, stage: str) -> None:
        """Note that a stage has ended now."""
        now = self._clock.now()
        self._took_s[stage] = now - self._last
        self._last = now

    @property
    def total_s(self) -> float:
        """Seconds since the start, stages or not."""
        return self._clock.now() - self._began

    def __str__(self) -> str:
        return ", ".join(f"{stage} {took_s:.3f}" for stage, took_s in self._took_s.items())
