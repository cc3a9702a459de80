"""The one place where what went wrong becomes an answer. Status codes live here alone."""

import logging
import math
from typing import Any
from uuid import uuid4

import msgspec
from starlette.responses import Response

from enginegate.errors import (
    BackendError,
    BackendFailedError,
    BackendUnavailableError,
    GateError,
    InternalError,
)
from enginegate.keys import KeyUnsealError

log = logging.getLogger(__name__)

STATUS: dict[str, int] = {
    "INVALID_REQUEST": 400,
    "INVALID_PLATFORM_KEY": 401,
    "INVALID_ADMIN_KEY": 401,
    "POLICY_DENIED": 403,
    "PRODUCT_NOT_FOUND": 404,
    "ENGINE_NOT_FOUND": 404,
    "NOT_FOUND": 404,
    "METHOD_NOT_ALLOWED": 405,
    "ENGINE_ALREADY_EXISTS": 409,
    "ENGINE_NOT_RUNNING": 409,
    "ENGINE_ALREADY_RUNNING": 409,
    "PRODUCT_SLUG_EXISTS": 409,
    "ENGINE_BUSY": 409,
    "PAYLOAD_TOO_LARGE": 413,
    "QUOTA_EXCEEDED": 429,
    "RATE_LIMITED": 429,
    "INTERNAL_ERROR": 500,
    "BACKEND_ERROR": 502,
    "PORT_EXHAUSTION": 503,
    "BACKEND_UNAVAILABLE": 503,
    "STORAGE_UNAVAILABLE": 503,
    "SHUTTING_DOWN": 503,
    "BOOT_TIMEOUT": 504,
    "WAKE_TIMEOUT": 504,
}

UNAUTHORIZED = 401
SAFE_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


def answer(error: BaseException, **headers: str) -> Response:
    """Return the answer that tells of an error, whatever it is."""
    told = problem(error)
    body: dict[str, Any] = {"code": told.code, "message": told.message}
    content = msgspec.json.encode({"error": body | told.fields})
    status = STATUS[told.code]
    wait_s = told.fields.get("retry_after_s")
    if told.code == "RATE_LIMITED" and wait_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(wait_s)))
    if told.code == "PAYLOAD_TOO_LARGE":
        headers["connection"] = "close"  # the rest of the body is not worth reading
    if status == UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    return Response(content, status, SAFE_HEADERS | headers, media_type="application/json")


def problem(error: BaseException) -> GateError:
    """Return what a caller may be told: nothing of the inside, but a reference to the log."""
    if isinstance(error, GateError) and error.code in STATUS:
        return error
    if isinstance(error, BackendError):
        log.warning("backend: %s", error)
        if error.unavailable:
            return BackendUnavailableError("The backend cannot be reached; ask again in a moment.")
        return BackendFailedError("The backend could not do it.")
    if isinstance(error, KeyUnsealError):
        log.error("%s", error)
        return InternalError("The engine's key cannot be opened; rotate it, or destroy the engine.")
    reference = uuid4().hex[:12]
    log.error("request failed, reference %s", reference, exc_info=error)
    return InternalError(f"Something went wrong; reference {reference}.", reference=reference)
