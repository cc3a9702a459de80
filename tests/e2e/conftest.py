"""The installed command as its users run it: real processes, real files, real engines."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from enginegate.backends.proc import processes, read_environ
from enginegate.cli.sandbox import ENGINE_PORTS, free_ports
from enginegate.keys import new_admin_key, new_master_key

ROOT = Path(__file__).parents[2]
PATIENCE_S = 30.0
POLL_S = 0.01


def eventually(condition: Callable[[], Any], what: str, *, seconds: float = PATIENCE_S) -> Any:
    """Return the first true value of the condition."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(POLL_S)
    return found


def remains(directory: Path) -> list[int]:
    """Return the processes that have to do with a directory; those that have ended do not count."""
    mark = f"{directory}"
    return [
        stat.pid
        for stat in processes()
        if not stat.over and any(mark in value for value in read_environ(stat.pid).values())
    ]


def engine_processes(directory: Path) -> dict[str, int]:
    """Return the pid of each engine process of a served directory, by engine id."""
    mark = str(directory / "data" / "engines")
    found = {}
    for stat in processes():
        environ = read_environ(stat.pid)
        leader = stat.leads_session
        if not stat.over and leader and environ.get("ENGINE_DATA_DIR", "").startswith(mark):
            found[environ["ENGINE_ID"]] = stat.pid
    return found


class Cli:
    """Runs `enginegate` in a directory, without what the tester's own environment holds."""

    def __init__(self, directory: Path, **variables: str) -> None:
        self.directory = directory
        kept = {k: v for k, v in os.environ.items() if not k.startswith("ENGINEGATE_")}
        paths = [str(ROOT), *filter(None, [kept.get("PYTHONPATH")])]
        self.env = kept | {"PYTHONPATH": os.pathsep.join(paths)} | variables

    def begin(self, *args: str, **options: Any) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "enginegate", *args],
            cwd=self.directory,
            env=self.env,
            stdin=subprocess.DEVNULL,
            text=True,
            **options,
        )

    def run(self, *args: str, exits: int = 0) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end, which must have this exit code and show no traceback."""
        with self.begin(*args, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            out, err = process.communicate(timeout=60)
        assert process.returncode == exits, (args, process.returncode, out, err)
        assert "Traceback" not in err
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    def json(self, *args: str) -> Any:
        return json.loads(self.run(*args, "--json").stdout)


class Server:
    """A served data directory. `stop` ends it, `close` destroys its engines before.

    `settings` is TOML that is added to the configuration, `variables` to the environment.
    """

    def __init__(self, directory: Path, settings: str = "", **variables: str) -> None:
        self.directory = directory
        self.admin_key = new_admin_key()
        first = free_ports()
        ports = f"min = {first}\nmax = {first + ENGINE_PORTS - 1}\n"
        (directory / "config.toml").write_text(f"[ports]\n{ports}{settings}")
        self.cli = Cli(
            directory,
            ENGINEGATE_ADMIN_KEY=self.admin_key,
            ENGINEGATE_MASTER_KEY=new_master_key(),
            **variables,
        )
        self.url = ""

    def start(self) -> None:
        """Start it, again on its port; return when it says that it accepts requests."""
        port = self.url.rpartition(":")[2] or "0"
        with (self.directory / "out").open("wb") as out, (self.directory / "err").open("ab") as err:
            self.process = self._begin("serve", "--port", port, stdout=out, stderr=err)
        said = eventually(self._said, "the server accepts requests")
        self.line = said
        self.url = self.cli.env["ENGINEGATE_URL"] = said.split(" on ")[1].split(" ")[0]

    def _begin(self, *args: str, **options: Any) -> "subprocess.Popen[str]":
        return self.cli.begin(*args, **options)

    def _said(self) -> str:
        assert self.process.poll() is None, self.log
        said = (self.directory / "out").read_text()
        return said if said.endswith("\n") else ""

    @property
    def log(self) -> str:
        return (self.directory / "err").read_text()

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(60)

    def product(self, slug: str, **policy: Any) -> httpx.Client:
        """Register a product; return a client that calls as it, `key` in its headers."""
        asked = {"slug": slug, "display_name": slug.title(), "policy": policy}
        made = self.admin("POST", "/products/register", json=asked).json()
        headers = {"X-Platform-Key": made["platform_api_key"]}
        return httpx.Client(base_url=self.url, headers=headers, timeout=PATIENCE_S)

    def admin(self, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {"X-Admin-Key": self.admin_key}
        answer = httpx.request(
            method, f"{self.url}{path}", headers=headers, timeout=PATIENCE_S, **more
        )
        assert answer.status_code == 200, answer.text
        return answer

    def audit(self, **query: Any) -> list[dict[str, Any]]:
        """Return the trail of the whole fleet, oldest first."""
        entries: list[dict[str, Any]] = self.admin("GET", "/audit", params=query).json()["entries"]
        return entries[::-1]

    def data_of(self, engine_id: str) -> Path:
        """Return the directory that is the engine's own."""
        return self.directory / "data" / "engines" / engine_id

    def close(self) -> None:
        """End it with its engines; it must end well."""
        if self.process.poll() is None:
            with httpx.Client(base_url=self.url, headers={"X-Admin-Key": self.admin_key}) as http:
                for product in http.get("/products").json()["products"]:
                    http.delete(f"/products/{product['product_id']}", timeout=60)
        assert self.stop() == 0, self.log
        assert remains(self.directory / "data") == []


@contextmanager
def serving(directory: Path, settings: str = "", **variables: str) -> Iterator[Server]:
    """Serve a directory with these settings, and leave nothing running behind."""
    server = Server(directory, settings, **variables)
    server.start()
    try:
        yield server
    finally:
        try:
            server.close()
        finally:
            for pid in remains(directory):  # none, unless a test has failed
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that the tests of a module share."""
    with serving(tmp_path_factory.mktemp("served")) as server:
        yield server


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A server for one test, which may end it as it likes."""
    with serving(tmp_path) as server:
        yield server
