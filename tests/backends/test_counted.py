"""Every call of a backend is counted by operation and by how it ended."""

from collections import Counter

import pytest

from enginegate.backends.base import EngineSpec
from enginegate.backends.counted import OPERATIONS, counted
from enginegate.errors import BackendError
from tests.fakes import FakeBackend

SPEC = EngineSpec(engine_id="e", engine_version="v", port=9001, key_hashes=("00",))


async def test_calls_are_counted_by_operation_and_outcome() -> None:
    """A backend that cannot be asked is told apart from one that says no."""
    calls: Counter[tuple[str, str]] = Counter()
    fake = FakeBackend()
    backend = counted(fake, lambda *ended: calls.update([ended]))
    await backend.start(SPEC)
    await backend.list()
    await backend.list()
    fake.fail("pause")
    with pytest.raises(BackendError):
        await backend.pause("e")
    fake.down = True
    with pytest.raises(BackendError):
        await backend.inspect("e")
    assert calls == {
        ("start", "ok"): 1,
        ("list", "ok"): 2,
        ("pause", "failed"): 1,
        ("inspect", "unavailable"): 1,
    }


async def test_everything_else_is_the_backend_s_own() -> None:
    """Its name, its url, its answers and its events come through as they are."""
    fake = FakeBackend()
    backend = counted(fake, lambda *_: None)
    await backend.open()
    assert (backend.name, backend.url(SPEC)) == (fake.name, fake.url(SPEC))
    assert await backend.ping()
    assert fake.opened
    assert all(hasattr(backend, operation) for operation in OPERATIONS)
