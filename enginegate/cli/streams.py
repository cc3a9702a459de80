"""The three standard streams: all of them open, and no output that gets lost unnoticed.

What stdout does not take is told once, in one line on stderr, whatever command wrote it and
whether it was a full disk or nobody who opened it. A reader that leaves, as `head` does, is
told nothing, unless it costs somebody a key. What stderr does
not take is dropped: there is nobody left to tell, and a server goes on without its log.
"""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from enginegate.cli.failures import Failure, report

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_STDIN, _STDOUT, _STDERR = range(3)


class Unwritable(Exception):  # noqa: N818 - as a Failure, but nothing on its way may take it for one
    """Stdout does not take what a command has to say; ends the command with this line.

    It is no `OSError`, for that is what a command may expect of files and sockets.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.reason = error.strerror or str(error)
        self.left = isinstance(error, BrokenPipeError)
        self.lost = ""
        self.exit_code: int = Failure.REFUSED

    def __str__(self) -> str:
        said = f"the output cannot be written: {self.reason}"
        return f"{said}; {self.lost}" if self.lost else said


class _Out(io.FileIO):
    """Says once that it cannot be written, and swallows what is tried after that.

    What is still in the buffer then would be tried again at the end, and fail again.
    """

    _given_up = False

    def write(self, data: "ReadableBuffer", /) -> int:
        size = memoryview(data).nbytes
        if self._given_up:
            return size
        try:
            written: int | None = super().write(data)
        except OSError as error:
            self._given_up = True
            raise Unwritable(error) from error
        if written is None:  # a pipe that does not block, and is full
            self._given_up = True
            raise Unwritable(BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)))
        return written


class _Err(io.FileIO):
    """Takes everything, and writes what can be written."""

    def write(self, data: "ReadableBuffer", /) -> int:
        size = memoryview(data).nbytes
        try:
            written: int | None = super().write(data)
        except OSError:
            return size
        return size if written is None else written


@contextmanager
def standard() -> Iterator[None]:
    """Put the streams in order for a command, and see to it that its output gets out.

    To be entered before anything else happens: a file or socket that is opened while one of
    the three descriptors is free becomes it, and takes what is printed.
    """
    _open_missing()
    sys.stdout = out = _text(_Out(_STDOUT, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Err(_STDERR, "w", closefd=False), sys.stderr)
    try:
        try:
            yield
        finally:
            out.flush()  # else the interpreter finds out at its end, and exits 120
    except Unwritable as error:
        expected = error.left and not error.lost
        sys.exit(report([] if expected else [str(error)], error.exit_code))


@contextmanager
def written(*, lost: str = "", exit_code: int = Failure.REFUSED) -> Iterator[None]:
    """Go on only when what is printed within has been written.

    Where it cannot be, `lost` goes on the line that says so, and the command ends with
    `exit_code`.
    """
    try:
        yield
        sys.stdout.flush()
    except Unwritable as error:
        error.lost, error.exit_code = lost, exit_code
        raise


def _open_missing() -> None:
    """Open /dev/null wherever who started us left a standard stream closed.

    Descriptor 1 for reading only: output must not vanish as if somebody had it.
    """
    for number in (_STDIN, _STDOUT, _STDERR):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_WRONLY if number == _STDERR else os.O_RDONLY)
            assert opened == number, "the lowest free descriptor is taken"
            os.set_inheritable(number, True)
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(_STDIN, closefd=False)))


def _text(raw: io.FileIO, before: TextIO | None) -> io.TextIOWrapper:
    """Return a text stream on `raw` that encodes and flushes as the interpreter's own did."""
    if not isinstance(before, io.TextIOWrapper):  # None, where the descriptor was closed
        return io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", "backslashreplace")
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        before.encoding,
        before.errors,
        line_buffering=before.line_buffering or before.write_through,
    )
