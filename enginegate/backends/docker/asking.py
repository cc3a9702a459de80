"""One question to the Docker Engine: on whose behalf, until when, and how a no is told.

`RefusedError` is the Engine's own no; `BackendError` with `unavailable` means that it could
not be asked, or that its answer got lost: then nothing is known. Needs aiohttp and
aiodocker for their exceptions alone.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Final, TypeVar

import aiohttp
import msgspec
from aiodocker import DockerError
from msgspec import Struct

from enginegate.backends.docker.budget import Priority
from enginegate.errors import BackendError

T = TypeVar("T")

_NOT_ASKED: Final = frozenset({502, 503, 504, 900})  # 900: aiodocker's "cannot connect"


class Ask(Struct, frozen=True):
    """On whose behalf the Engine is asked, and until when (seconds of the loop's clock).

    A verb is often several calls, and waits its turn before each: `until` bounds them all.
    """

    operation: str
    engine_id: str | None
    priority: Priority
    until: float = math.inf


class RefusedError(BackendError):
    """The Engine answered, and the answer is no."""

    def __init__(self, ask: Ask, status: int, detail: str) -> None:
        super().__init__(ask.operation, ask.engine_id, f"{detail} [{status}]")
        self.status = status


class NeverSentError(BackendError):
    """The Engine was not reached at all, so the call has no effect, now or later."""


def is_answer(error: DockerError) -> bool:
    """Return whether it is the Engine's own, not that of something in between, or of aiodocker."""
    return error.status not in _NOT_ASKED


@contextmanager
def translated(ask: Ask) -> Iterator[None]:
    """Turn what aiodocker and the wire raise into our errors; nothing else is caught."""
    try:
        yield
    except DockerError as exc:  # with aiodocker's word for a failed connection as its context
        if isinstance(exc.__context__, aiohttp.ClientConnectorError):
            raise _never_sent(ask, exc.message) from exc
        if not is_answer(exc):
            raise not_asked(ask, exc.message) from exc
        raise RefusedError(ask, exc.status, exc.message) from exc
    except TimeoutError as exc:
        raise not_asked(ask, "no answer in time") from exc
    except aiohttp.ClientConnectorError as exc:
        raise _never_sent(ask, str(exc)) from exc
    except (aiohttp.ClientError, OSError) as exc:
        raise not_asked(ask, str(exc) or type(exc).__name__) from exc
    except (msgspec.MsgspecError, ValueError, LookupError, TypeError) as exc:
        raise not_asked(ask, f"an answer that is not understood: {exc}") from exc


def not_asked(ask: Ask, detail: str) -> BackendError:
    return BackendError(ask.operation, ask.engine_id, detail, unavailable=True)


def _never_sent(ask: Ask, detail: str) -> BackendError:
    return NeverSentError(ask.operation, ask.engine_id, detail, unavailable=True)


@contextmanager
def absent_is_done() -> Iterator[None]:
    try:
        yield
    except RefusedError as refusal:
        if refusal.status != HTTPStatus.NOT_FOUND:
            raise


def decoded(ask: Ask, raw: bytes, wanted: type[T]) -> T:
    with translated(ask):
        return msgspec.json.decode(raw, type=wanted)
