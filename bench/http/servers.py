"""Starts the servers that are compared, each as a process of its own, and ends them."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from msgspec import Struct

from bench.results import ROOT
from enginegate.backends.proc import processes, read_environ
from enginegate.cli.sandbox import free_ports
from enginegate.keys import new_admin_key, new_master_key

PATIENCE_S = 30.0
ENGINE_PORTS = 100
USER = "user-1"
_RANGES: set[int] = set()
NO_KEY = "pk-eg-0123456789012345678901234567890123456789012"  # as long as a real one
UVICORN = (
    "-m", "uvicorn", "--loop", "uvloop", "--http", "httptools", "--no-access-log",
    "--no-server-header", "--log-level", "critical",
)  # fmt: skip


class Target(Struct, frozen=True, kw_only=True):
    """What a server is asked, over and over; headers are `Name: value`."""

    name: str
    url: str
    method: str = "POST"
    body: str = "{}"
    headers: tuple[str, ...] = ()


def admits(name: str, port: int, key: str = NO_KEY, user: str = USER) -> Target:
    """Return the admit of a user, as every server here is asked for it."""
    url = f"http://127.0.0.1:{port}/engines/{user}/admit"
    return Target(name=name, url=url, headers=(f"X-Platform-Key: {key}",))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@contextmanager
def process(command: list[str], *, port: int, directory: Path, **env: str) -> Iterator[int]:
    """Run a server until the block ends, and yield its pid; it must accept connections first."""
    with (directory / f"{port}.log").open("wb") as log:
        running = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | env,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
    try:
        _until_listening(running, port, directory)
        yield running.pid
    finally:
        running.terminate()
        running.wait(PATIENCE_S)


def _until_listening(running: "subprocess.Popen[bytes]", port: int, directory: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if running.poll() is not None or time.monotonic() > deadline:
                log = (directory / f"{port}.log").read_text("utf-8", "replace")
                raise RuntimeError(f"{running.args!r} does not listen:\n{log[-2000:]}") from None
            time.sleep(0.02)
        else:
            return


@contextmanager
def bare_protocol(directory: Path) -> Iterator[Target]:
    port = free_port()
    command = [sys.executable, "-m", "bench.http.bare_protocol", str(port)]
    with process(command, port=port, directory=directory):
        yield admits("bare protocol", port)


@contextmanager
def uvicorn(directory: Path, app: str, name: str) -> Iterator[Target]:
    port = free_port()
    command = [sys.executable, *UVICORN, "--lifespan", "off", "--port", str(port), app]
    with process(command, port=port, directory=directory):
        yield admits(name, port)


@contextmanager
def fastapi(directory: Path, dsn: str, key: str) -> Iterator[Target]:
    port, app = free_port(), "bench.http.fastapi_postgres:app"
    command = [sys.executable, *UVICORN, "--port", str(port), app]
    with process(command, port=port, directory=directory, DSN=dsn):
        yield admits("FastAPI + PostgreSQL", port, key)


@contextmanager
def granian(directory: Path) -> Iterator[Target]:
    port = free_port()
    command = [
        sys.executable, "-m", "granian", "--interface", "asginl", "--host", "127.0.0.1",
        "--port", str(port), "--workers", "1", "--loop", "uvloop", "--no-log",
        "bench.http.apps:bare",
    ]  # fmt: skip
    with process(command, port=port, directory=directory):
        yield admits("Granian, bare ASGI", port)


class Gate:
    """A served enginegate with products; see `enginegate`."""

    def __init__(self, port: int, admin_key: str) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.admin_key = admin_key

    def ask(self, method: str, path: str, body: object = None, *, key: str = "") -> Any:
        """Call the API with a platform key, or as the operator."""
        headers = {"X-Platform-Key": key} if key else {"X-Admin-Key": self.admin_key}
        url = self.url + path
        answer = httpx.request(method, url, json=body, headers=headers, timeout=PATIENCE_S)
        return answer.raise_for_status().json()

    def register(self, slug: str, **policy: int) -> str:
        """Return the platform key of a new product."""
        body = {"slug": slug, "display_name": slug, "policy": policy}
        return str(self.ask("POST", "/products/register", body)["platform_api_key"])

    def admit(self, key: str, user: str, **options: object) -> Any:
        return self.ask("POST", f"/engines/{user}/admit", options, key=key)

    def destroy_all(self) -> None:
        for one in self.ask("GET", "/products")["products"]:
            self.ask("DELETE", f"/products/{one['product_id']}")


@contextmanager
def enginegate(
    directory: Path, *, config: str = "", module: str = "enginegate", **env: str
) -> Iterator[Gate]:
    """Serve enginegate as its users do; whatever engines it has go at the end."""
    port, first = free_port(), _engine_ports()
    home = directory / f"gate-{port}"
    home.mkdir()
    (home / "config.toml").write_text(
        f'data_dir = "{home}/data"\n{config}\n'
        f"[ports]\nmin = {first}\nmax = {first + ENGINE_PORTS - 1}\n"
    )
    admin_key = new_admin_key()
    variables = env | {
        "ENGINEGATE_ADMIN_KEY": admin_key,
        "ENGINEGATE_MASTER_KEY": new_master_key(),
    }
    command = [
        sys.executable, "-m", module, "serve", "--config", str(home / "config.toml"),
        "--port", str(port), "--log-level", "warning",
    ]  # fmt: skip
    try:
        with process(command, port=port, directory=directory, **variables):
            gate = Gate(port, admin_key)
            _until_healthy(gate)
            yield gate
            gate.destroy_all()
    finally:
        _end_engines(home)  # engines outlive their gate: those of a pool, and of a run that failed


def _engine_ports() -> int:
    """Return a range of ports that no other gate of this run was given."""
    while (first := free_ports(ENGINE_PORTS)) in _RANGES:
        pass
    _RANGES.add(first)
    return first


def _end_engines(home: Path) -> None:
    for stat in processes():
        if read_environ(stat.pid).get("ENGINE_DATA_DIR", "").startswith(f"{home}/"):
            with suppress(ProcessLookupError):
                os.kill(stat.pid, signal.SIGKILL)


def _until_healthy(gate: Gate) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            gate.ask("GET", "/health")
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return
