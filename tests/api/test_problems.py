"""One place turns what went wrong into an answer, and tells nothing of the inside."""

import logging

import msgspec
import pytest
from starlette.responses import Response

from enginegate import errors
from enginegate.api.problems import STATUS, answer
from enginegate.keys import KeyUnsealError


def told(response: Response) -> dict[str, object]:
    error: dict[str, object] = msgspec.json.decode(response.body)["error"]
    return error


def test_every_error_type_has_a_status() -> None:
    """An error that is added without one would become a 500 unnoticed."""
    codes = {
        kind.code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.GateError)
    }

    assert codes == set(STATUS)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.BackendError("start", "e1", "dockerd at 10.0.0.5 said no"), "BACKEND_ERROR"),
        (errors.BackendError("list", None, "10.0.0.5", unavailable=True), "BACKEND_UNAVAILABLE"),
        (errors.JournalError("torn", path="/var/lib/10.0.0.5"), "INTERNAL_ERROR"),
        (KeyUnsealError("10.0.0.5", "opens with none"), "INTERNAL_ERROR"),
        (RecursionError("10.0.0.5"), "INTERNAL_ERROR"),
    ],
)
def test_errors_of_the_world_are_told_without_their_detail(
    error: Exception, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The detail is in the log, the caller gets a code and a sentence."""
    caplog.set_level(logging.WARNING)
    response = answer(error)

    assert told(response)["code"] == code
    assert response.status_code == STATUS[code]
    assert b"10.0.0.5" not in bytes(response.body)
    assert "10.0.0.5" in caplog.text


@pytest.mark.parametrize(
    ("wait_s", "header"), [(0.001, "1"), (1, "1"), (1.000001, "2"), (59.5, "60"), (None, None)]
)
def test_the_wait_is_told_exactly_and_rounded_up(wait_s: float | None, header: str | None) -> None:
    """Who waits for as long as the header says has waited long enough."""
    response = answer(errors.RateLimitedError("Over.", retry_after_s=wait_s))

    assert told(response)["retry_after_s"] == wait_s
    assert response.headers.get("retry-after") == header
