"""The fixtures of the API's tests; what they are made of is in `rig`."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import pytest

from tests.api.rig import Gate, opened

OpenGate = Callable[..., AbstractAsyncContextManager[Gate]]


@pytest.fixture
def open_gate(tmp_path: Path) -> OpenGate:
    """Open a gate with sections of the configuration that a test chooses."""
    return partial(opened, tmp_path)


@pytest.fixture
async def gate(open_gate: OpenGate) -> AsyncIterator[Gate]:
    """A gate as it is out of the box, with the product `demo`."""
    async with open_gate() as found:
        yield found
