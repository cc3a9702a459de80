"""A server of its own for the demo: temporary directory, free ports, and nothing left behind."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from enginegate.backends.proc import processes, read_environ
from enginegate.cli.client import Gate, Unreachable
from enginegate.cli.failures import Failure
from enginegate.keys import new_admin_key, new_master_key

START_S: Final = 20.0
STOP_S: Final = 40.0
ENGINE_PORTS: Final = 8
_PORTS: Final = range(20_000, 32_000)  # below what the kernel hands out
_POLL_S: Final = 0.002
_TAIL_LINES: Final = 15
_SAYS: Final = " accepts requests on "


class Sandbox:
    """A data directory and the server on it. `close` leaves no process and no file."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="enginegate-demo-"))
        self.admin_key = new_admin_key()
        self.admin_key_file = self._keep("admin.key", self.admin_key)
        self._master_key_file = self._keep("master.key", new_master_key())
        first = free_ports()
        self._config = self._keep(
            "config.toml",
            f'data_dir = "{self.directory}/data"\n'
            '[engine]\nbackend = "process"\n'
            f"[ports]\nmin = {first}\nmax = {first + ENGINE_PORTS - 1}\n",
        )
        self._log = self.directory / "server.log"
        self._server: subprocess.Popen[bytes] | None = None
        self.url = ""

    @property
    def pid(self) -> int:
        assert self._server is not None
        return self._server.pid

    def start(self) -> None:
        """Start the server, again on the port it had; return when it accepts requests.

        Raises:
            Failure: it does not; with the end of its log.
        """
        port = self.url.rpartition(":")[2] or "0"
        command = [sys.executable, "-m", "enginegate", "serve"]
        command += ["--config", str(self._config), "--port", port]
        with (self.directory / "stdout").open("wb") as stdout, self._log.open("ab") as stderr:
            self._server = subprocess.Popen(  # noqa: S603 - ourselves
                command,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,  # a Ctrl-C is ours; the server is told by `close`
            )
        deadline = time.monotonic() + START_S
        while not (said := (self.directory / "stdout").read_text()).endswith("\n"):
            if self._server.poll() is not None or time.monotonic() > deadline:
                raise Failure(f"the server did not come up\n{self.log_tail()}")
            time.sleep(_POLL_S)
        self.url = said.partition(_SAYS)[2].partition(" ")[0]

    def kill(self) -> None:
        """End the server as a power cut would."""
        assert self._server is not None
        self._server.kill()
        self._server.wait()

    def admin(self) -> Gate:
        return Gate(self.url, {"X-Admin-Key": self.admin_key})

    def log_tail(self) -> str:
        """Return the last lines of the server's log."""
        if not self._log.exists():
            return ""
        lines = self._log.read_text("utf-8", "replace").splitlines()
        return "\n".join(lines[-_TAIL_LINES:])

    def close(self) -> None:
        """Destroy all engines, stop the server, remove the directory."""
        try:
            self._destroy_all()
            self._stop()
        finally:
            self._end_remains()
            shutil.rmtree(self.directory, ignore_errors=True)

    def _destroy_all(self) -> None:
        """Have the server destroy what it made; one that has gone comes back for that."""
        if not self.url:
            return
        try:
            if self._server is None or self._server.poll() is not None:
                self.start()
            gate = self.admin()
            for product in gate.call("GET", "/products")["products"]:
                gate.call("DELETE", f"/products/{product['product_id']}")
        except (Failure, Unreachable):
            pass  # then `_end_remains` does it

    def _stop(self) -> None:
        if self._server is None or self._server.poll() is not None:
            return
        self._server.terminate()
        try:
            self._server.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def _end_remains(self) -> None:
        """Kill engines that outlive a server which could not destroy them, one by one."""
        inside = f"{self.directory}/"
        for stat in processes():
            if read_environ(stat.pid).get("ENGINE_DATA_DIR", "").startswith(inside):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(stat.pid, signal.SIGKILL)

    def _environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("ENGINEGATE_")}
        return kept | {
            "ENGINEGATE_ADMIN_KEY_FILE": str(self.admin_key_file),
            "ENGINEGATE_MASTER_KEY_FILE": str(self._master_key_file),
        }

    def _keep(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.touch(mode=0o600)
        path.write_text(text)
        return path


def free_ports(count: int = ENGINE_PORTS, among: range = _PORTS) -> int:
    """Return the first of `count` ports in a row that nobody holds."""
    firsts = range(among.start, among.stop - count + 1, count)
    for first in random.sample(firsts, k=len(firsts)):  # two at once must not share a range
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise Failure(f"there are no {count} free ports in a row on 127.0.0.1")
