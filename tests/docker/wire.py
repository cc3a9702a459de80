"""A wire between enginegate and the Docker Engine that can be cut for event streams alone."""

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_REQUEST = re.compile(rb"^(GET|POST|PUT|DELETE|HEAD) (/[^ ?]*)[^ ]* HTTP/1\.1\r\n")
_PIECE = 65_536


class Wire:
    """Forwards a unix socket to another, in a thread of its own; notes what is asked.

    `requests` counts method and path of each request. With `events=False` whoever asks
    for the events is hung up on, so that enginegate is blind while all else works.
    """

    def __init__(self, path: Path, target: str, *, events: bool = True) -> None:
        self.url = f"unix://{path}"
        self.events = events
        self.requests: Counter[tuple[str, str]] = Counter()
        self._path, self._target = path, target
        self._strike: tuple[str, str, Callable[[], object]] | None = None
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wire", daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def once(self, method: str, part: str, do: Callable[[], object]) -> threading.Event:
        """Do something as soon as a request has gone out; the event tells that it was done."""
        done = threading.Event()

        def strike() -> None:
            do()
            done.set()

        self._strike = (method, part, strike)
        return done

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_unix_server(self._connected, self._path)
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with suppress(OSError):
                far_reader, far_writer = await asyncio.open_unix_connection(self._target)
                there = asyncio.ensure_future(self._requests(reader, far_writer))
                back = asyncio.ensure_future(self._answers(far_reader, writer))
                try:
                    await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for one in (there, back):
                        one.cancel()
                    far_writer.close()
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _requests(self, near: asyncio.StreamReader, far: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await near.read(_PIECE):
                if found := _REQUEST.match(piece):
                    method, path = found[1].decode(), found[2].decode()
                    self.requests[method, path] += 1
                    if path.endswith("/events") and not self.events:
                        return
                far.write(piece)
                await far.drain()
                if found and self._strike and self._is_meant(*found.groups()):
                    (_, _, strike), self._strike = self._strike, None
                    strike()  # here and now: in a thread, the daemon might be done before it

    def _is_meant(self, method: bytes, path: bytes) -> bool:
        assert self._strike is not None
        return method.decode() == self._strike[0] and self._strike[1] in path.decode()

    async def _answers(self, far: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await far.read(_PIECE):
                near.write(piece)
                await near.drain()
