"""A backend whose engines are there already: for what the server itself costs."""

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence

from enginegate.backends.base import (
    BackendEvent,
    Connection,
    EngineSpec,
    Observation,
    Presence,
    Usage,
)


class StillBackend:
    """Shows `running` as running and `stopped` as stopped, and does what it is told in no time."""

    name = "still"

    def __init__(self, *, running: Collection[str], stopped: Collection[str]) -> None:
        self._seen = dict.fromkeys(stopped, Presence.STOPPED) | dict.fromkeys(
            running, Presence.RUNNING
        )
        self._listed: Sequence[Observation] | None = None

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def ping(self) -> bool:
        return True

    def url(self, spec: EngineSpec) -> str:
        return f"http://127.0.0.1:{spec.port}"

    async def prepare(self, spec: EngineSpec) -> None: ...

    async def start(self, spec: EngineSpec) -> Observation:
        self._seen[spec.engine_id], self._listed = Presence.RUNNING, None
        return await self.inspect(spec.engine_id)

    async def stop(self, engine_id: str, *, grace_s: float) -> None:  # noqa: ARG002 - the protocol's
        self._seen[engine_id], self._listed = Presence.STOPPED, None

    async def pause(self, engine_id: str) -> None:
        self._seen[engine_id], self._listed = Presence.PAUSED, None

    async def unpause(self, engine_id: str) -> Observation:
        self._seen[engine_id], self._listed = Presence.RUNNING, None
        return await self.inspect(engine_id)

    async def reconnect(self, engine_id: str) -> None: ...

    async def destroy(self, engine_id: str) -> None:
        self._seen.pop(engine_id, None)
        self._listed = None

    async def remove_orphan(self, engine_id: str) -> None:
        self._seen.pop(engine_id, None)
        self._listed = None

    async def inspect(self, engine_id: str) -> Observation:
        presence = self._seen.get(engine_id, Presence.ABSENT)
        return Observation(engine_id=engine_id, presence=presence)

    async def list(self) -> Sequence[Observation]:
        """Everybody, stopped ones too; made anew after a change, as a real one works elsewhere."""
        if self._listed is None:
            self._listed = [
                Observation(engine_id=one, presence=seen) for one, seen in self._seen.items()
            ]
        return self._listed

    async def logs(self, engine_id: str, *, lines: int) -> Sequence[str]:  # noqa: ARG002
        return []

    async def trim_logs(self) -> None: ...

    async def usage(self, engine_id: str) -> Usage:  # noqa: ARG002
        return Usage()

    async def connections(self, engine_id: str, *, port: int) -> Sequence[Connection]:  # noqa: ARG002
        return []

    async def put_key(
        self, engine_id: str, key_hashes: Sequence[str], *, first: bool = False
    ) -> None: ...

    async def watch(self) -> AsyncIterator[BackendEvent]:
        await asyncio.Event().wait()
        yield BackendEvent(kind="resync")
