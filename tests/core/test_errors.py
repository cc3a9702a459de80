"""Errors say what happened, to people and to programs, and whether trying again can help."""

import re
from pathlib import Path

import pytest

from enginegate import errors

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type)]
TOLD = [kind for kind in KINDS if issubclass(kind, errors.GateError)]


@pytest.mark.parametrize("kind", TOLD)
def test_what_a_caller_is_told_has_a_code_a_sentence_and_fields(
    kind: type[errors.GateError],
) -> None:
    """The code is for programs and never changes, the sentence is for people."""
    error = kind("It went wrong.", limit=3)
    assert re.fullmatch(r"[A-Z]+(_[A-Z]+)*", error.code)
    assert (str(error), error.message, error.fields) == ("It went wrong.",) * 2 + ({"limit": 3},)


def test_no_two_errors_share_a_code() -> None:
    """A code says exactly one thing; only the base stands for an error of our own."""
    codes = [kind.code for kind in TOLD if kind is not errors.GateError]
    assert len(codes) == len(set(codes)) == 24


def test_a_backend_error_says_whether_anything_is_known_about_the_engine() -> None:
    """A backend that could not be asked is no reason to blame an engine."""
    error = errors.BackendError("start", "e-1", "no such image")
    assert str(error) == "start e-1: no such image"
    assert (error.operation, error.engine_id, error.unavailable) == ("start", "e-1", False)
    assert errors.BackendError("list", None, "refused", unavailable=True).unavailable
    assert issubclass(errors.PortTakenError, errors.BackendError)
    assert issubclass(errors.ImageUnavailableError, errors.BackendError)


def test_a_journal_error_names_the_place_and_what_helps() -> None:
    """File, offset, and the command to run next; the exit code tells scripts the kind."""
    path = str(Path("data") / "segment-1")
    error = errors.JournalError("a frame is damaged", path=path, offset=96, hint="Repair it.")
    assert str(error) == "a frame is damaged (data/segment-1 at offset 96). Repair it."
    assert (error.path, error.offset, error.hint, error.exit_code) == (path, 96, "Repair it.", 65)
    assert str(errors.JournalError("in use", path="data", exit_code=75)) == "in use (data)"


def test_a_config_error_lists_every_fault() -> None:
    """One line each."""
    error = errors.ConfigError(("a: wrong", "b: wrong"))
    assert (str(error), error.faults) == ("a: wrong\nb: wrong", ["a: wrong", "b: wrong"])
