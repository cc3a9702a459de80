"""The journal at size: how long a start takes and what it needs, and what a snapshot disturbs."""

import asyncio
import gc
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

from msgspec.structs import replace

from bench import fleet
from bench.context import Context
from bench.measure import figure, percentile, ratio
from bench.results import Figure, Goal, Result
from enginegate import facts as f
from enginegate.clock import SystemClock
from enginegate.journal import Committer, Journal
from enginegate.keys import Keyring, new_engine_key
from enginegate.model import SnapshotRecord
from enginegate.ports import PORT_MAX, PortMap
from enginegate.registry import Registry
from enginegate.server import SWITCH_S

NAME = "journal"
TITLE = "a start of a large fleet, and a snapshot of it under load"
MASTER_KEY = "b" * 43 + "="
MIB = 1024 * 1024
BATCH = 500
STARTS = {100_000: 3.0, 10_000: 0.5}  # engines: seconds that a start may take
RSS_BOUND_MB = 400
TICK_S = 0.001
WRITERS = 16


def run(context: Context) -> Result:
    result = Result(bench=NAME)
    for engines, bound_s in STARTS.items():
        _start(context, result, context.pick(engines, engines // 50), bound_s)
    _lag(context, result)
    return result


# A start


def _start(context: Context, result: Result, engines: int, bound_s: float) -> None:
    """Make a directory, then start on it some times, each in a process of its own."""
    context.progress(f"a directory of {engines:,} engines")
    directory = context.directory / f"journal-{engines}"
    large = engines == max(context.pick(n, n // 50) for n in STARTS)
    history = context.pick(1_000_000, 10_000) if large else 0
    make(directory, engines=engines, history=history, tail_bytes=context.pick(15 * MIB, MIB // 4))
    found = []
    for number in range(context.pick(3, 1)):
        context.progress(f"start {number + 1} with {engines:,} engines")
        copy = directory.with_name(f"{directory.name}-{number}")  # a start leaves no tail behind
        shutil.copytree(directory, copy)
        command = [sys.executable, "-m", "bench.journal", str(copy)]
        root = Path(__file__).parents[1]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
        shutil.rmtree(copy)
    size = f"{engines:,} engines" + (f", {history:,} facts of history" if history else "")
    for part in ("read", "fleet", "new files"):
        values = [one[part] for one in found]
        result.figures.append(figure(f"start with {size}: {part}", values, "s"))
    worked = [one["work"] for one in found]
    result.figures.append(figure(f"start with {size}: processor time", worked, "s"))
    took = [one["total"] for one in found]
    result.figures.append(figure(f"start with {size}", took, "s"))
    peak = max(one["peak"] for one in found)
    result.figures.append(Figure(name=f"start with {size}: peak", value=peak, unit="MB"))
    result.goals += [
        _goal(f"start with {engines:,} engines / {bound_s:g} s", median(took) / bound_s),
        _goal(f"peak with {engines:,} engines / {RSS_BOUND_MB} MB", peak / RSS_BOUND_MB),
    ]


def _goal(name: str, value: float) -> Goal:
    return Goal(name=name, value=round(value, 3), must="at most", bound=1.0, guard=2.0)


def make(directory: Path, *, engines: int, history: int, tail_bytes: int) -> None:
    """Write a data directory: history behind three snapshots, and a tail after the last."""
    keyring = Keyring([MASTER_KEY])
    records: list[SnapshotRecord] = [fleet.product(0, "pk")]
    for number in range(engines):
        sealed = keyring.seal(f"e{number}", new_engine_key())
        made = fleet.engine(number, "p0", sealed_key=sealed)
        records.append(replace(made, created_at_ms=number))
    journal = Journal.open(directory, key_id=keyring.key_id, check=lambda _: [])
    journal.begin(records)
    for first in range(0, history, BATCH):
        journal.append([_note(number) for number in range(first, first + BATCH)])
    for _ in range(3):
        journal.write_snapshot(records, state_at=journal.rotate())
    begun, number = journal.bytes_written, 0
    # A server would not leave a longer tail than calls for a snapshot.
    while journal.bytes_written - begun < tail_bytes and not journal.should_snapshot:
        journal.append([_turn(number + one, engines) for one in range(BATCH)])
        number += BATCH
    journal.fail("the benchmark needs no more of it")
    journal.close()


def _note(number: int) -> f.AnyFact:
    return f.Noted(
        at_ms=number, action="admit_denied", product_id="p0", metadata={"reason": "x", "count": 7}
    )


def _turn(number: int, engines: int) -> f.AnyFact:
    """Return a sleep of each engine in turn, then a wake of each."""
    engine, round_ = number % engines, number // engines
    ids: dict[str, Any] = {
        "engine_id": f"e{engine}",
        "product_id": "p0",
        "user_id": f"user{engine}",
        "at_ms": number,
        "duration_ms": 12.5,
    }
    return f.Woken(**ids) if round_ % 2 else f.Slept(**ids, reason="idle")


def _registry() -> Registry:
    return Registry(
        ports=PortMap(1, PORT_MAX),
        keyring=Keyring([MASTER_KEY]),
        clock=SystemClock(),
        url_of=lambda engine: f"http://127.0.0.1:{engine.port}",
        sleep_after_s=900,
    )


def start(directory: Path) -> dict[str, float]:
    """Do what a server does from the lock to the first durable fact; return seconds and MB."""
    began, spent = time.perf_counter(), time.process_time()
    gc.disable()  # as a server has it until the fleet is built
    journal = Journal.open(directory, key_id=Keyring([MASTER_KEY]).key_id, check=lambda _: [])
    read = time.perf_counter()
    registry = _registry()
    registry.load(journal.snapshot, journal.tail)
    journal.release_replay()
    built = time.perf_counter()
    journal.begin(registry.snapshot())
    begun, worked = time.perf_counter(), time.process_time() - spent
    journal.fail("the benchmark needs no more of it")  # a seal would shorten the next start
    journal.close()
    return {
        "read": read - began,
        "fleet": built - read,
        "new files": begun - built,
        "total": begun - began,
        "work": worked,
        "peak": _peak_mb(),
    }


def _peak_mb() -> float:
    """Return the most memory this process had; `getrusage` would tell of its parent's, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


# A snapshot under load


def _lag(context: Context, result: Result) -> None:
    """The event loop's lag while facts are written, with and without a snapshot beside it."""
    engines = context.pick(100_000, 2_000)
    directory = context.directory / "journal-lag"
    make(directory, engines=engines, history=0, tail_bytes=0)
    plain, beside, took = asyncio.run(_lags(context, directory, engines))
    result.figures += [
        figure("loop lag p99 under load", plain, "ms"),
        figure("loop lag p99 under load beside a snapshot", beside, "ms"),
        figure(f"a live snapshot of {engines:,} engines", took, "s"),
    ]
    result.goals.append(
        ratio("lag beside a snapshot / without", beside, plain, bound=2.0, guard=25.0)
    )


async def _lags(
    context: Context, directory: Path, engines: int
) -> tuple[list[float], list[float], list[float]]:
    journal = Journal.open(directory, key_id=Keyring([MASTER_KEY]).key_id, check=lambda _: [])
    registry = _registry()
    registry.load(journal.snapshot, journal.tail)
    journal.release_replay()
    journal.begin(registry.snapshot())
    gc.collect()
    gc.freeze()  # as a server has it once it serves, and so the next line
    sys.setswitchinterval(SWITCH_S)
    committer = Committer(
        journal,
        apply=registry.apply,
        abandon=registry.abandon,
        snapshot_source=registry.records,
    )
    registry.attach(committer, journal)
    async with asyncio.TaskGroup() as tasks:
        committing = tasks.create_task(committer.run())
        writers = [tasks.create_task(_write(registry, n, engines)) for n in range(WRITERS)]
        with _ticker() as ticks:
            found = [await _round(context, committer, ticks) for _ in range(context.pick(5, 1))]
        for writer in writers:
            writer.cancel()
        await committer.close()
        await asyncio.wait([committing])
    plain, beside, took = (list(values) for values in zip(*found, strict=True))
    return plain, beside, took


async def _round(context: Context, committer: Committer, ticks: int) -> tuple[float, float, float]:
    """Return the lag without a snapshot and beside one, and the seconds that one took."""
    context.progress("lag beside a snapshot")
    plain = await _measure(ticks, asyncio.sleep(context.pick(3, 1) / 2))
    began = time.perf_counter()
    beside = await _measure(ticks, committer.compact())
    return plain, beside, time.perf_counter() - began


async def _write(registry: Registry, number: int, engines: int) -> None:
    """Let some engines sleep and wake, one fact after the other."""
    while True:
        for one in range(number, engines, WRITERS):
            live = registry.engines[f"e{one}"]
            ids: dict[str, Any] = {
                "engine_id": live.engine.engine_id,
                "product_id": "p0",
                "user_id": live.engine.user_id,
                "at_ms": registry.clock.wall_ms(),
            }
            fact = f.Slept(**ids, reason="idle") if live.running else f.Woken(**ids)
            await registry.commit(fact)


async def _measure(ticks: int, until: Awaitable[None]) -> float:
    """Return the p99 of how late the loop reads what another process wrote, in milliseconds."""
    late: list[float] = []

    def read() -> None:
        stamps = memoryview(os.read(ticks, 65_536)).cast("d")
        late.extend((time.monotonic() - stamp) * 1000 for stamp in stamps)

    loop = asyncio.get_running_loop()
    with suppress(BlockingIOError):
        os.read(ticks, 65_536)  # written while nobody read
    loop.add_reader(ticks, read)
    await until
    loop.remove_reader(ticks)
    return percentile(sorted(late), 0.99)


@contextmanager
def _ticker() -> Iterator[int]:
    """Yield what another process writes the time to, over and over.

    A timer of the loop's own would not do: it is a millisecond late by itself.
    """
    command = [sys.executable, "-c", _TICKER, str(TICK_S)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        os.set_blocking(running.stdout.fileno(), False)
        yield running.stdout.fileno()
        running.terminate()


_TICKER = """
import os, struct, sys, time
while True:
    time.sleep(float(sys.argv[1]))
    os.write(1, struct.pack("d", time.monotonic()))
"""


if __name__ == "__main__":
    print(json.dumps(start(Path(sys.argv[1]))))
