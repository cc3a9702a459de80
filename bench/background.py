"""Admits while everything else goes on: sweeps, snapshots, dashboards and a monitor."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial

from msgspec import Struct

from bench.context import Context
from bench.http import open_load, servers, wrk
from bench.http.open_load import Latency
from bench.http.servers import Target
from bench.measure import figure, interleaved, ratio
from bench.results import ROOT, Result
from enginegate.cli.sandbox import free_ports
from enginegate.keys import new_admin_key, new_platform_key

NAME = "background"
TITLE = "a warm admit beside a 300-engine sweep, snapshots of 100,000 engines, audits, scrapes"
SHARE = 0.3
MEASURED_S = 6  # a whole sweep
THAWED_S = 4  # until a frozen gate has made up for what was due, and has its memory back
CONNECTIONS = 32
KEYS_PER_S = 1_200  # that a gate opens after its start, and some to spare
NEVER_S = 86_400.0

Beside = Callable[[], AbstractContextManager[None]]
"""Entered while something is measured."""


class Gate(Struct, frozen=True):
    """A gate over a large fleet, and who looks at it; frozen while others are measured."""

    target: Target
    pid: int
    url: str
    admin_key: str


def run(context: Context) -> Result:
    result = Result(bench=NAME)
    result.skipped += open_load.missing()
    if result.skipped:
        return result
    with ExitStack() as stack:
        here = os.sched_getaffinity(0)
        outside = {max(here)}
        quiet, busy, floor = _start(context, stack, outside, inside=here - outside or here)
        found = _latencies(context, quiet, busy, floor, outside)
    for name, seen in found.items():
        result.figures += [
            figure(f"{name}, p50", [one.p50_ms for one in seen], "ms"),
            figure(f"{name}, p99", [one.p99_ms for one in seen], "ms"),
        ]
    p99 = {name: [one.p99_ms for one in seen] for name, seen in found.items()}
    result.goals += [
        ratio("p99, enginegate busy / quiet", p99["busy"], p99["quiet"], bound=1.5, guard=100.0),
        ratio(
            "p99, bare floor beside a busy one / alone",
            p99["floor beside busy"],
            p99["floor"],
            bound=1.5,
            guard=100.0,  # it says what the machine adds, not what we do
        ),
        ratio(
            "p99, what enginegate's grows by / what the bare floor's does",
            [a * b for a, b in zip(p99["busy"], p99["floor"], strict=True)],
            [a * b for a, b in zip(p99["quiet"], p99["floor beside busy"], strict=True)],
            bound=1.5,
            guard=100.0,
        ),
        ratio(
            "p99 beside that load, enginegate / bare floor",
            p99["busy"],
            p99["floor beside busy"],
            bound=1.5,
            guard=100.0,
        ),
    ]
    return result


@contextmanager
def _on(processors: set[int]) -> Iterator[None]:
    """Run there, and have there whatever is started.

    What stands for other machines (the load, engines, onlookers) shares one processor, and
    what is measured has the others: a system that sees one sending to the other puts both on
    one processor, as it cannot where they are two machines, and one waits for the other there.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _start(
    context: Context, stack: ExitStack, outside: set[int], *, inside: set[int]
) -> tuple[Gate, Gate, Target]:
    """Start all and freeze the gates, once they have opened the keys of their fleets."""
    running, rows = context.pick(300, 30), context.pick(100_000, 2_000)
    farm = free_ports(running)
    command = [sys.executable, "-m", "bench.http.engine_farm", str(farm), str(running)]
    folder = context.directory
    with _on(outside):
        stack.enter_context(servers.process(command, port=farm, directory=folder))
    context.progress(f"two fleets of {rows:,} engines")
    large = partial(_large, context, farm=farm, running=running, rows=rows)
    with _on(inside):
        quiet = stack.enter_context(large("quiet", sweep_every_s=NEVER_S, snapshot_every_s=0.0))
        busy = stack.enter_context(large("busy", sweep_every_s=MEASURED_S, snapshot_every_s=2.0))
        floor = stack.enter_context(servers.bare_protocol(folder))
    context.progress("keys are opened")
    time.sleep(rows / KEYS_PER_S)
    for gate in (quiet, busy):
        os.kill(gate.pid, signal.SIGSTOP)
        stack.callback(os.kill, gate.pid, signal.SIGCONT)
    return quiet, busy, floor


@contextmanager
def _large(
    context: Context,
    name: str,
    *,
    farm: int,
    running: int,
    rows: int,
    sweep_every_s: float,
    snapshot_every_s: float,
) -> Iterator[Gate]:
    port, key, admin_key = servers.free_port(), new_platform_key(), new_admin_key()
    home = context.directory / name
    command = [
        sys.executable, "-m", "bench.http.large_gate", str(home), "--port", str(port),
        "--farm", str(farm), "--running", str(running), "--rows", str(rows), "--key", key,
        "--admin-key", admin_key, "--sweep-every-s", str(sweep_every_s),
        "--snapshot-every-s", str(snapshot_every_s),
    ]  # fmt: skip
    with servers.process(command, port=port, directory=context.directory) as pid:
        target = servers.admits(name, port, key, user="user0")
        yield Gate(target, pid, f"http://127.0.0.1:{port}", admin_key)


def _latencies(
    context: Context, quiet: Gate, busy: Gate, floor: Target, outside: set[int]
) -> dict[str, list[Latency]]:
    """Measure each in turn, from `outside`; a server that is not measured is frozen."""
    with _awake(quiet), _on(outside):
        ours, floors = (
            SHARE * wrk.run(one, connections=CONNECTIONS, seconds=2).requests_per_s
            for one in (quiet.target, floor)
        )
    generator = open_load.Load(context.directory)
    found: dict[str, list[Latency]] = {}

    def load(name: str, target: Target, rate: float, beside: Beside) -> float:
        with _on(outside), beside():
            seen = generator.run(
                target,
                rate=rate,
                seconds=context.pick(MEASURED_S, 1),
                warm_up_s=context.pick(THAWED_S, 1),
            )
        found.setdefault(name, []).append(seen)
        return seen.p99_ms

    at_work = partial(_looked_at, busy)
    interleaved(
        {
            "quiet": partial(load, "quiet", quiet.target, ours, partial(_awake, quiet)),
            "busy": partial(load, "busy", busy.target, ours, at_work),
            "floor": partial(load, "floor", floor, floors, nullcontext),
            "floor beside busy": partial(load, "floor beside busy", floor, floors, at_work),
        },
        rounds=context.pick(11, 1),
        progress=context.progress,
    )
    return found


@contextmanager
def _awake(gate: Gate) -> Iterator[None]:
    """Let the gate do its work."""
    os.kill(gate.pid, signal.SIGCONT)
    try:
        yield
    finally:
        os.kill(gate.pid, signal.SIGSTOP)


@contextmanager
def _looked_at(gate: Gate) -> Iterator[None]:
    """Let the gate do its work, with everybody who looks at it."""
    command = [sys.executable, "-m", "bench.http.onlookers", gate.url, gate.admin_key]
    with _awake(gate), subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as onlookers:
        try:
            assert onlookers.stdout is not None
            assert onlookers.stdout.readline(), "whoever looks at the gate saw nothing"
            yield
            assert onlookers.poll() is None, "whoever looks at the gate gave up"
        finally:
            onlookers.terminate()
