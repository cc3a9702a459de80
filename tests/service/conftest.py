"""Gates for tests, on a clock that stands still until it is told to go on."""

from typing import Any

import pytest

from enginegate.config import Config
from tests.fakes import ManualClock
from tests.service.gate import Gate


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def make_gate(clock: ManualClock) -> Any:
    """Return a maker of started gates with given configuration; all are closed at the end."""
    made: list[Gate] = []

    async def make(config: Config | None = None) -> Gate:
        gate = Gate(config=config or Config(), clock=clock)
        made.append(gate)
        await gate.start()
        return gate

    yield make
    for gate in made:
        await gate.close()


@pytest.fixture
async def gate(make_gate: Any) -> Any:
    return await make_gate()
