"""How writing can fail, as two types: one heals, the other never does.

A full disk is told before anything of the batch was written, so nothing is lost
and trying again can help. After a failed write or sync nobody knows what the
disk holds: the kernel marks the pages clean and a second sync "succeeds". So
that failure is final for the life of the process; a restart recovers into new files.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from enginegate.errors import JournalError

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_RIGHT = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
EX_FAILED = 1


class _WriteError(JournalError):
    """A batch that did not get onto the disk whole.

    `durable` counts the facts of the batch that earlier frames of it made durable;
    it is only ever above 0 for a batch too large for one frame.
    """

    durable: int = 0

    def __init__(self, message: str, *, path: str, hint: str = "") -> None:
        # Not that of damage, after which a supervisor tries no more: trying again may help.
        super().__init__(message, path=path, hint=hint, exit_code=EX_FAILED)


class JournalFull(_WriteError):  # noqa: N818 - a state of the journal, named as `status` says it
    """No room for another segment or snapshot; nothing was written, retrying can help."""


class JournalFailed(_WriteError):  # noqa: N818 - a state of the journal, named as `status` says it
    """A write or sync failed; whether the batch is on disk is unknown until a restart."""


def no_room(error: OSError) -> bool:
    """Tell whether the disk is full, or what we may use of it."""
    return error.errno in _NO_ROOM


@contextmanager
def new_file(path: Path) -> Iterator[None]:
    """Translate errors of making a file nobody relies on yet: no room is `JournalFull`."""
    try:
        yield
    except OSError as error:
        if no_room(error):
            raise JournalFull(f"no room on disk: {error.strerror}", path=str(path)) from error
        raise _failed(error, path) from error


@contextmanager
def live_file(path: Path) -> Iterator[None]:
    """Translate errors of writing what is relied on: every one of them is final."""
    try:
        yield
    except OSError as error:
        raise _failed(error, path) from error


def _failed(error: OSError, path: Path) -> JournalFailed:
    hint = "Start again: it recovers into new files."
    if error.errno in _NO_RIGHT:
        hint = "Give the user that enginegate runs as the right to write there, then start again."
    return JournalFailed(f"writing failed: {error.strerror or error}", path=str(path), hint=hint)
