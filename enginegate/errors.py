"""What can go wrong, as types. No HTTP here: `api.problems` owns status codes.

A `GateError` is what a caller is told: a stable code, one sentence that says what
happened and what to do, and fields for a program. Errors of the world
(`BackendError`, `JournalError`, `ConfigError`) say whether trying again can help
and carry a hint for the operator.
"""

from collections.abc import Sequence
from typing import Any, ClassVar


class GateError(Exception):
    """Base of every error that a caller of the gate may be shown."""

    code: ClassVar[str] = "INTERNAL_ERROR"

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.fields = fields


class InvalidRequestError(GateError):
    code = "INVALID_REQUEST"


class InvalidPlatformKeyError(GateError):
    code = "INVALID_PLATFORM_KEY"


class InvalidAdminKeyError(GateError):
    code = "INVALID_ADMIN_KEY"


class PolicyDeniedError(GateError):
    code = "POLICY_DENIED"


class ProductNotFoundError(GateError):
    code = "PRODUCT_NOT_FOUND"


class EngineNotFoundError(GateError):
    code = "ENGINE_NOT_FOUND"


class PathNotFoundError(GateError):
    code = "NOT_FOUND"


class MethodNotAllowedError(GateError):
    code = "METHOD_NOT_ALLOWED"


class EngineAlreadyExistsError(GateError):
    code = "ENGINE_ALREADY_EXISTS"


class EngineNotRunningError(GateError):
    code = "ENGINE_NOT_RUNNING"


class EngineAlreadyRunningError(GateError):
    code = "ENGINE_ALREADY_RUNNING"


class ProductSlugExistsError(GateError):
    code = "PRODUCT_SLUG_EXISTS"


class EngineBusyError(GateError):
    code = "ENGINE_BUSY"


class PayloadTooLargeError(GateError):
    code = "PAYLOAD_TOO_LARGE"


class QuotaExceededError(GateError):
    code = "QUOTA_EXCEEDED"


class RateLimitedError(GateError):
    code = "RATE_LIMITED"


class InternalError(GateError):
    code = "INTERNAL_ERROR"


class BackendFailedError(GateError):
    """The backend refused or failed; `BackendError` has the detail for the log."""

    code = "BACKEND_ERROR"


class PortExhaustionError(GateError):
    code = "PORT_EXHAUSTION"


class BackendUnavailableError(GateError):
    code = "BACKEND_UNAVAILABLE"


class StorageUnavailableError(GateError):
    """The journal cannot be written: disk full (heals by itself) or a failed sync."""

    code = "STORAGE_UNAVAILABLE"


class ShuttingDownError(GateError):
    code = "SHUTTING_DOWN"


class BootTimeoutError(GateError):
    code = "BOOT_TIMEOUT"


class WakeTimeoutError(GateError):
    code = "WAKE_TIMEOUT"


class BackendError(Exception):
    """A backend call failed. `detail` is for logs and the audit trail, not for callers.

    `unavailable` means that the backend itself could not be asked, so nothing is
    known about the engine and nothing may be concluded from it.
    """

    def __init__(
        self, operation: str, engine_id: str | None, detail: str, *, unavailable: bool = False
    ) -> None:
        super().__init__(f"{operation} {engine_id or ''}: {detail}")
        self.operation = operation
        self.engine_id = engine_id
        self.detail = detail
        self.unavailable = unavailable


class PortTakenError(BackendError):
    """Another program holds the engine's port; the engine was not started."""


class NoRoomError(BackendError):
    """The disk that engines' files lie on is full; trying again helps once there is room."""


class ImageUnavailableError(BackendError):
    """The image is neither present nor to be pulled; `detail` names it."""


class NotRunningError(BackendError):
    """The engine has no process that could be frozen or thawed."""


class DataLostError(BackendError):
    """The engine has run before and its data are not there; `detail` names what is missing."""


class JournalError(Exception):
    """The journal cannot be opened as it is. Shown to the operator with its hint.

    `exit_code` is what the command line ends with: 75 when another process holds
    the directory (EX_TEMPFAIL), 65 for damaged data (EX_DATAERR), 78 for a wrong
    master key or directory (EX_CONFIG), 1 for a full or failing disk.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str,
        offset: int | None = None,
        hint: str = "",
        exit_code: int = 65,
    ) -> None:
        place = path if offset is None else f"{path} at offset {offset}"
        super().__init__(f"{message} ({place})" + (f". {hint}" if hint else ""))
        self.path = path
        self.offset = offset
        self.hint = hint
        self.exit_code = exit_code


class ConfigError(Exception):
    """The configuration cannot be used; lists every fault found, not only the first."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = list(faults)
