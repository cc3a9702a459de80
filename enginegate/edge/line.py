"""The transport as uvicorn sees it: closing it never loses an answer that was sent.

A socket that is closed while the client still sends is reset by the kernel, and the
reset can overtake the answer. So the end of a connection on which something may still
come in is a half-close: the answer goes out, what arrives is thrown away, and after a
short while the rest is cut.
"""

import asyncio
from collections.abc import Callable
from typing import Any


class Line(asyncio.Transport):
    """A transport whose `close` leaves to its owner what comes after the last answer.

    `linger` says whether more may come in; `leave` is told once that the end has begun.
    """

    def __init__(
        self,
        raw: asyncio.Transport,
        *,
        linger: Callable[[], bool],
        leave: Callable[[], None],
    ) -> None:
        super().__init__()
        self.raw = raw
        self._linger = linger
        self._leave = leave
        self._ended = False

    def write(self, data: Any) -> None:
        if not self._ended:
            self.raw.write(data)

    def close(self) -> None:
        """Send what was written, then end."""
        if self._ended:
            return
        self._ended = True
        if self.raw.is_closing():
            return
        if self._linger():
            self.raw.write_eof()
        else:
            self.raw.close()
        self._leave()

    def abort(self) -> None:
        """End at once, whatever was written."""
        self._ended = True
        self.raw.abort()

    def is_closing(self) -> bool:
        return self._ended or self.raw.is_closing()

    def pause_reading(self) -> None:
        self.raw.pause_reading()

    def resume_reading(self) -> None:
        if not (self.raw.is_closing() or self.raw.is_reading()):
            self.raw.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.raw.get_extra_info(name, default)
