"""The machine's clock: one that only goes forward for waiting, one that people read."""

from enginegate.clock import Clock, SystemClock


async def test_the_clock_for_waiting_never_goes_back() -> None:
    """Deadlines count on it, also across a wait."""
    clock: Clock = SystemClock()
    before = clock.now()
    await clock.sleep(0)
    assert clock.now() >= before


def test_the_clock_for_people_counts_milliseconds_since_1970() -> None:
    """It is past the day this was written, and not in some other unit."""
    assert 1_700_000_000_000 < SystemClock().wall_ms() < 10_000_000_000_000
