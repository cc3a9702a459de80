"""What becomes of a command whose output nobody takes: a full disk, no reader, no descriptor."""

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from enginegate.cli.sandbox import free_ports
from tests.e2e.conftest import PATIENCE_S, Cli, Server, eventually, remains

FULL, LEFT, CLOSED = "a full device", "a reader that has left", "a closed descriptor"
WHY = {FULL: "No space left on device", LEFT: "Broken pipe", CLOSED: "Bad file descriptor"}
LINE = {why: f"the output cannot be written: {reason}\n" for why, reason in WHY.items()}
LINE[LEFT] = ""  # it is what `head` does, and nobody calls that a failure
STDIN, STDOUT, STDERR = range(3)


def no_room(kind: str) -> int:
    """Return a descriptor that takes nothing."""
    if kind != LEFT:
        return os.open("/dev/full", os.O_WRONLY)
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def without(*numbers: int) -> Callable[[], None]:
    """Return what closes descriptors in a child right before it becomes the command."""

    def close() -> None:
        for number in numbers:
            os.close(number)

    return close


def deprived(cli: Cli, kind: str, *args: str, of: str = "stdout") -> tuple[int, str]:
    """Run a command whose stdout or stderr takes nothing; return its code and what the other has.

    `kind` is how it comes that nothing is taken.
    """
    number, other = (STDOUT, "stderr") if of == "stdout" else (STDERR, "stdout")
    bad = no_room(kind)
    options: dict[str, Any] = {of: bad, other: subprocess.PIPE}
    if kind == CLOSED:
        options["preexec_fn"] = without(number)
    try:
        with cli.begin(*args, **options) as process:
            out, err = process.communicate(timeout=60)
    finally:
        os.close(bad)
    return process.returncode, err if of == "stdout" else out


# --- commands whose stdout takes nothing --------------------------------------------------------


@pytest.fixture(params=["", "1"], ids=["buffered", "unbuffered"])
def either(request: pytest.FixtureRequest, cli: Cli) -> Cli:
    """The command line with and without a buffer, for they fail at other places."""
    cli.env["PYTHONUNBUFFERED"] = request.param
    return cli


@pytest.mark.parametrize("kind", WHY)
def test_every_command_says_in_one_line_that_its_output_is_lost(either: Cli, kind: str) -> None:
    """Exit code 1 and the reason; no traceback, not the interpreter's 120, silence for `head`."""
    for command in ("openapi", "config check"):  # more than a buffer holds, and a line
        code, said = deprived(either, kind, *command.split())
        assert said == LINE[kind], command
        assert code == 1, command


@pytest.mark.parametrize("kind", WHY)
def test_client_commands_say_so_too(server: Server, kind: str) -> None:
    """Tables and JSON alike."""
    for command in ("products list", "status --json"):
        code, said = deprived(server.cli, kind, *command.split())
        assert said == LINE[kind], command
        assert code == 1, command


@pytest.mark.parametrize("kind", WHY)
def test_a_new_platform_key_that_could_not_be_shown_is_told_to_be_lost(
    server: Server, kind: str
) -> None:
    """The line has the command that makes another one, which then works."""
    cli = server.cli
    for command in ("register", "rotate-key"):
        code, said = deprived(cli, kind, "products", command, "unseen")
        assert code == 1
        lost = re.fullmatch(
            f"the output cannot be written: {WHY[kind]};"
            " the new platform key of unseen is lost with it: make another with `(.+)`\n",
            said,
        )
        assert lost, said
        assert "pk-eg-" in cli.run(*shlex.split(lost[1])[1:]).stdout
    cli.run("products", "delete", "unseen")


def test_a_pipe_that_does_not_block_and_is_full_takes_nothing_either(cli: Cli) -> None:
    """Some parents leave their pipes so; what found no room is not taken for written."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"." * 4096)
    with cli.begin("openapi", stdout=writer, stderr=subprocess.PIPE) as process:
        _, said = process.communicate(timeout=60)
    os.close(reader)
    os.close(writer)
    assert said == "the output cannot be written: Resource temporarily unavailable\n"
    assert process.returncode == 1


@pytest.mark.parametrize("kind", [FULL, CLOSED])
def test_a_demo_that_nobody_can_read_leaves_nothing_running(cli: Cli, kind: str) -> None:
    """Also with --keep: who was not told of a server cannot stop it."""
    place = cli.directory / "tmp"
    place.mkdir()
    cli.env["TMPDIR"] = str(place)
    try:
        code, said = deprived(cli, kind, "demo", "--keep")
        assert said == LINE[kind]
        assert code == 1
        assert list(place.iterdir()) == []
        assert remains(place) == []
    finally:
        for pid in remains(place):
            os.kill(pid, signal.SIGKILL)


# --- commands whose stderr takes nothing, or whose stdin is not there ---------------------------


@pytest.mark.parametrize("kind", WHY)
def test_words_that_nobody_hears_change_nothing_else(cli: Cli, kind: str) -> None:
    """The command does its work, prints its result alone, and exits with its own code."""
    code, printed = deprived(cli, kind, "init", of="stderr")
    assert code == 0
    assert [line.split("=")[0] for line in printed.splitlines()] == [
        "export ENGINEGATE_ADMIN_KEY_FILE",
        "export ENGINEGATE_MASTER_KEY_FILE",
    ]
    assert (cli.directory / "secrets" / "master.key").stat().st_size > 0
    assert deprived(cli, kind, "products", "list", of="stderr") == (2, "")
    assert deprived(cli, kind, "config", "nonsense", of="stderr") == (2, "")


def test_a_command_without_stdin_is_one_that_nobody_can_answer(server: Server) -> None:
    """It does not ask back, as where stdin is no terminal."""
    server.cli.run("products", "register", "unasked")
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "preexec_fn": without(STDIN)}
    with server.cli.begin("products", "delete", "unasked", **options) as process:
        printed, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")
    assert "deleted" in printed


# --- serve --------------------------------------------------------------------------------------


class Unheard(Server):
    """A server that says nothing that one could read: it is asked until it answers."""

    def start_with(self, **options: Any) -> None:
        port = free_ports(1)
        self.url = self.cli.env["ENGINEGATE_URL"] = f"http://127.0.0.1:{port}"
        self.process = self.cli.begin("serve", "--port", str(port), **options)
        eventually(self._answers, "the server answers", seconds=PATIENCE_S)

    def _answers(self) -> bool:
        assert self.process.poll() is None, f"it has ended with {self.process.returncode}"
        try:
            return httpx.get(f"{self.url}/health").is_success
        except httpx.TransportError:
            return False

    def end(self) -> None:
        """Kill it, if a test has failed."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def unheard(tmp_path: Path) -> Iterator[Unheard]:
    server = Unheard(tmp_path, PYTHONUNBUFFERED="")  # what fills no buffer is tried at the end
    yield server
    server.end()


@pytest.mark.parametrize(
    ("kind", "number"), [(FULL, signal.SIGTERM), (LEFT, signal.SIGINT)], ids=["full", "left"]
)
def test_a_server_whose_words_nobody_takes_ends_well(
    unheard: Unheard, kind: str, number: int
) -> None:
    """It serves, and a signal ends it with 0, though neither its line nor its log got out."""
    bad = no_room(kind)
    try:
        unheard.start_with(stdout=bad, stderr=bad)
    finally:
        os.close(bad)
    unheard.cli.run("products", "register", "heard")
    assert unheard.stop(number) == 0


@pytest.mark.parametrize("numbers", [[STDIN], [STDOUT], [STDIN, STDOUT, STDERR]], ids=str)
def test_a_server_that_is_given_no_descriptors_puts_null_in_their_place(
    unheard: Unheard, numbers: list[int]
) -> None:
    """No file and no socket of its own becomes one: nothing is printed into the journal."""
    with (unheard.directory / "err").open("wb") as err:
        unheard.start_with(stdout=subprocess.DEVNULL, stderr=err, preexec_fn=without(*numbers))
    held = Path(f"/proc/{unheard.process.pid}/fd")
    assert {(held / str(number)).readlink() for number in numbers} == {Path("/dev/null")}
    unheard.cli.run("products", "register", "kept")
    assert unheard.stop() == 0
    assert "clean" in unheard.cli.run("journal", "verify").stdout
