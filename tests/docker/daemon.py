"""A Docker daemon of the tests' own, which may be stopped and killed while nobody else minds."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.docker.engine import docker

_READY_S = 60.0
_POLL_S = 0.05
_BRIDGE_ADDRESS = "10.214.0.1/24"
_POOL = "base=10.213.0.0/16,size=24"
_PROGRAMS = ("dockerd", "containerd", "ip")
_CONTAINERD = """\
version = 2
root = "{folder}/containerd-root"
state = "{folder}/containerd-state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{folder}/containerd.sock"
"""


class OwnDaemon:
    """dockerd with its own containerd, data, socket and network pool, beside the machine's.

    It leaves iptables alone, which two daemons would fight over: ports on the loopback
    are served by Docker's proxy and need none. Nothing of it is left after `close`.
    """

    def __init__(self, *, live_restore: bool = True) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="egd-"))  # a socket's path must be short
        self._live_restore = live_restore
        self.socket = str(self._folder / "docker.sock")
        self.host = f"unix://{self.socket}"
        self._bridge = f"egd{os.getpid() % 10**6}"
        _ip("link", "add", "name", self._bridge, "type", "bridge")
        _ip("addr", "add", _BRIDGE_ADDRESS, "dev", self._bridge)
        self._process: subprocess.Popen[bytes] | None = None
        self._containerd = self._start_containerd()

    def _start_containerd(self) -> "subprocess.Popen[bytes]":
        """Start containerd apart from dockerd, as distributions do: it outlives dockerd."""
        config = self._folder / "containerd.toml"
        config.write_text(_CONTAINERD.format(folder=self._folder))
        with (self._folder / "containerd-log").open("ab") as log:
            return subprocess.Popen(
                ["containerd", "--config", config], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start it, on what an earlier run has left; return when it answers."""
        options = {
            "data-root": self._folder / "data",
            "exec-root": self._folder / "exec",
            "pidfile": self._folder / "pid",
            "host": self.host,
            "containerd": self._folder / "containerd.sock",
            "bridge": self._bridge,  # with "none" it would remove the docker0 of others
            "iptables": "false",
            "storage-driver": "vfs",
            "default-address-pool": _POOL,
            "live-restore": str(self._live_restore).lower(),
        }
        words = [f"--{name}={value}" for name, value in options.items()]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["dockerd", *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._until_ready(self._process)

    def _until_ready(self, process: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + _READY_S
        while time.monotonic() < deadline:
            assert process.poll() is None, self.log[-3000:]
            with suppress(AssertionError, subprocess.TimeoutExpired):
                docker("version", host=self.host, timeout_s=5)
                return
            time.sleep(_POLL_S)
        raise AssertionError(f"dockerd does not answer: {self.log[-3000:]}")

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        process = self._signal(signal.SIGKILL)
        process.wait(10)

    def _signal(self, number: int) -> "subprocess.Popen[bytes]":
        assert self._process is not None
        self._process.send_signal(number)
        return self._process

    def close(self) -> None:
        """Remove what runs in it, end it, and take its files away."""
        if self._process is not None:
            self.thaw()
            if self._process.poll() is not None:
                self.start()
            if left := docker("ps", "-aq", host=self.host).split():
                docker("rm", "-fv", *left, host=self.host)
            docker("network", "prune", "-f", host=self.host)
            self._signal(signal.SIGTERM).wait(30)
        self._containerd.terminate()
        self._containerd.wait(30)
        for pid in self._processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for mount in self._mounts():
            subprocess.run(["umount", "-l", mount], check=False)
        _ip("link", "del", self._bridge)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _processes(self) -> list[int]:
        """Return what still runs out of our folder: containerd, shims, proxies."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with suppress(OSError):
                    if str(self._folder).encode() in (entry / "cmdline").read_bytes():
                        found.append(int(entry.name))
        return [pid for pid in found if pid != os.getpid()]

    def _mounts(self) -> list[str]:
        points = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        return sorted((one for one in points if one.startswith(str(self._folder))), reverse=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=10)


def need_dockerd() -> None:
    """Skip where no daemon of one's own can be started; fail where Docker is required."""
    if not all(map(shutil.which, _PROGRAMS)) or os.geteuid() != 0:
        missing = f"a Docker daemon of one's own needs root and {', '.join(_PROGRAMS)}"
        if os.environ.get("ENGINEGATE_REQUIRE_DOCKER") == "1":
            pytest.fail(f"ENGINEGATE_REQUIRE_DOCKER=1, but {missing}")
        pytest.skip(missing)
