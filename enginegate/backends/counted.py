"""Any backend, with every call counted by operation and outcome: for the metrics."""

from collections.abc import Callable
from functools import wraps
from typing import Any, Final, cast

from enginegate.backends.base import Backend
from enginegate.errors import BackendError

Count = Callable[[str, str], None]
"""Told of each call that ended: operation, and `ok`, `failed` or `unavailable`."""

OPERATIONS: Final = frozenset(
    {
        "start",
        "stop",
        "pause",
        "unpause",
        "reconnect",
        "destroy",
        "inspect",
        "list",
        "remove_orphan",
        "logs",
        "usage",
        "connections",
        "put_key",
    }
)


def counted(backend: Backend, count: Count) -> Backend:
    """Return the backend as it is, but for the counting."""
    return cast(Backend, _Counted(backend, count))


class _Counted:
    def __init__(self, backend: Backend, count: Count) -> None:
        self._backend = backend
        self._count = count

    def __getattr__(self, name: str) -> Any:
        """Hand on whatever is asked for; what is an operation is wrapped once."""
        found = getattr(self._backend, name)
        if name in OPERATIONS:
            found = self.__dict__[name] = _counting(name, found, self._count)
        return found


def _counting(name: str, operation: Callable[..., Any], count: Count) -> Callable[..., Any]:
    @wraps(operation)
    async def call(*args: Any, **kwargs: Any) -> Any:
        try:
            answer = await operation(*args, **kwargs)
        except BackendError as error:
            count(name, "unavailable" if error.unavailable else "failed")
            raise
        count(name, "ok")
        return answer

    return call
