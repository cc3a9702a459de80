"""A first admit, from a pool and without one, and a wake, beside the same done by hand."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx

from bench.context import Context
from bench.http import servers
from bench.http.servers import Gate
from bench.measure import figure, interleaved, ratio
from bench.results import ROOT, Result
from enginegate.backends.process_launch import SAMPLE_COMMAND
from enginegate.keys import digest_hex, new_engine_key

NAME = "cold"
TITLE = "a first admit, cold and from a pool, and a wake of process engines, beside bare ones"
COLD, POOLED, BARE = "cold admit", "admit from the pool", "bare process to first answer"
PLAIN_COLD, PLAIN_POOLED = f"{COLD}, plain engine", f"{POOLED}, plain engine"
POOL = "[pool]\nsize = 5\n"
PLAIN_COMMAND = [sys.executable, str(ROOT / "bench/engines/plain.py")]
PLAIN = f"[engine]\ncommand = {json.dumps(PLAIN_COMMAND)}\n"
POLL_S = 0.002
PATIENCE_S = 30.0


def run(context: Context) -> Result:
    result = Result(bench=NAME)
    users = iter(range(1_000_000))
    with (
        servers.enginegate(context.directory) as gate,
        servers.enginegate(context.directory, config=POOL) as pooled,
        servers.enginegate(context.directory, config=PLAIN) as plain,
        servers.enginegate(context.directory, config=PLAIN + POOL) as plain_pooled,
        httpx.Client(timeout=PATIENCE_S) as http,
    ):
        gates = {COLD: gate, POOLED: pooled, PLAIN_COLD: plain, PLAIN_POOLED: plain_pooled}
        keys = {name: one.register("shop") for name, one in gates.items()}
        key = keys[COLD]

        def first_admit(name: str) -> float:
            if gates[name] in (pooled, plain_pooled):
                _until_ready(gates[name])
            return _cold_admit(gates[name], http, keys[name], f"user-{next(users)}")

        boots = interleaved(
            {
                **{name: partial(first_admit, name) for name in gates},
                BARE: partial(_bare_boot, context.directory, http),
            },
            rounds=context.pick(30, 3),
            progress=context.progress,
        )
        with _bare_engine(context.directory) as (pid, url):
            _until_healthy(http, url)
            _cold_admit(gate, http, key, "sleeper")
            wakes = interleaved(
                {
                    "wake by admit": lambda: _wake_by_admit(gate, http, key),
                    "bare SIGCONT and one probe": partial(_bare_wake, http, pid, url),
                },
                rounds=context.pick(50, 3),
                progress=context.progress,
            )
    for found in (boots, wakes):
        result.figures += [figure(name, took, "ms") for name, took in found.items()]
    result.goals += [
        ratio("cold admit / bare process", boots[COLD], boots[BARE], bound=1.5, guard=4.0),
        ratio("cold / from the pool", boots[COLD], boots[POOLED], bound=20, guard=4, at_least=True),
        ratio(
            "cold / from the pool, plain engine",
            boots[PLAIN_COLD],
            boots[PLAIN_POOLED],
            bound=20,
            guard=6,
            at_least=True,
        ),
        ratio("wake / bare SIGCONT", *wakes.values(), bound=3.0, guard=20.0),
    ]
    return result


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def _admit(gate: Gate, http: httpx.Client, key: str, user: str, **options: bool) -> None:
    headers = {"X-Platform-Key": key}
    url = f"{gate.url}/engines/{user}/admit"
    answer = http.post(url, json=options, headers=headers).raise_for_status().json()
    assert answer["admitted"], answer


def _cold_admit(gate: Gate, http: httpx.Client, key: str, user: str) -> float:
    return _timed(lambda: _admit(gate, http, key, user, auto_provision=True))


def _until_ready(gate: Gate) -> None:
    """Wait until the pool is full and at rest, so that a claim is all that is measured."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        pool = gate.ask("GET", "/status")["pool"]
        if pool["ready"] == pool["size"] and not pool["booting"]:
            return
        time.sleep(POLL_S)
    sys.exit("the pool does not fill")


def _wake_by_admit(gate: Gate, http: httpx.Client, key: str) -> float:
    gate.ask("POST", "/engines/sleeper/sleep", {"force": True}, key=key)
    return _timed(lambda: _admit(gate, http, key, "sleeper", auto_wake=True))


@contextmanager
def _bare_engine(directory: Path) -> Iterator[tuple[int, str]]:
    port = servers.free_port()
    home = directory / f"bare-{port}"
    home.mkdir()
    env = {
        "PATH": os.environ.get("PATH", ""),
        "PORT": str(port),
        "ENGINE_DATA_DIR": str(home),
        "ENGINE_ID": "bare",
        "ENGINE_KEY_HASH": digest_hex(new_engine_key()),
    }
    log = (home / "log").open("wb")
    with log, subprocess.Popen(SAMPLE_COMMAND, env=env, stdout=log, stderr=log) as running:
        try:
            yield running.pid, f"http://127.0.0.1:{port}/health"
        finally:
            running.send_signal(signal.SIGCONT)
            running.terminate()


def _bare_boot(directory: Path, http: httpx.Client) -> float:
    began = time.perf_counter()
    with _bare_engine(directory) as (_, url):
        _until_healthy(http, url)
        return (time.perf_counter() - began) * 1000


def _until_healthy(http: httpx.Client, url: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            if http.get(url, headers={"connection": "close"}).is_success:
                return
        except httpx.TransportError:
            time.sleep(POLL_S)
    sys.exit("the sample engine does not come up")


def _bare_wake(http: httpx.Client, pid: int, url: str) -> float:
    os.kill(pid, signal.SIGSTOP)
    time.sleep(POLL_S)

    def wake() -> None:
        os.kill(pid, signal.SIGCONT)
        http.get(url, headers={"connection": "close"}).raise_for_status()

    return _timed(wake)
