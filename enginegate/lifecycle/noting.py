"""What goes wrong in a verb: an answer for its callers, and an entry in the audit trail."""

from types import TracebackType

from enginegate.errors import BackendError, GateError, StorageUnavailableError
from enginegate.lifecycle.boot import told
from enginegate.model import Outcome
from enginegate.registry import LiveEngine, Registry


class Noting:
    """Turns a time-out into an answer, and leaves an audit entry for work that failed."""

    def __init__(self, registry: Registry, live: LiveEngine, verb: str, actor: str) -> None:
        self.registry = registry
        self.live = live
        self.verb = verb
        self.actor = actor

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, TimeoutError):
            late = BackendError(self.verb, self.live.engine.engine_id, "no answer in time")
            late.unavailable = True
            error = told(late)
        if isinstance(error, GateError) and not isinstance(error, StorageUnavailableError):
            self.registry.note(
                self.verb,
                live=self.live,
                outcome=Outcome.FAILED,
                actor=self.actor,
                reason=error.message,
            )
            raise error
