"""What a start says of itself: its stages, one after the other, and the whole."""

from enginegate.stages import Stages
from tests.fakes import ManualClock


async def test_each_stage_ends_where_the_next_begins() -> None:
    """The parts are told in order, and add up to the whole."""
    clock = ManualClock()
    stages = Stages(clock)
    await clock.advance(0.25)
    stages.ended("read")
    await clock.advance(1.5)
    stages.ended("engines")
    await clock.advance(0.25)
    assert str(stages) == "read 0.250, engines 1.500"
    assert stages.total_s == 2.0
