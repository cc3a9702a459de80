"""What enginegate adds to Docker's own time: pairs with the raw calls, medians, ratios."""

import asyncio
import statistics
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench.docker_pairs import Pairs, Target, provisions, wakes
from enginegate.cli.sandbox import free_ports
from tests.backends import image
from tests.backends.contract import free_port
from tests.docker.gate import DockerGate, admit, call
from tests.docker.size import LONG

pytestmark = pytest.mark.docker

PAIRS = 50 if LONG else 15
TRIES = 3
quiet_machine = pytest.mark.skipif(
    not LONG, reason="needs a machine that is busy with nothing else: python -m tests.docker --long"
)
WAKE_RATIO, WAKE_EXTRA_MS = 1.3, 5.0
PROVISION_RATIO = 1.2
POOL_SHARE, POOL_PORTS = 1 / 20, 100
MEMORY = "64m"
_APART = range(11_000, 12_000)  # from those of the other gate


@pytest.fixture(scope="module")
def gate(tiny_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerGate]:
    """An enginegate whose engines are the bundled one: it boots as long as a small real one."""
    settings = {"ENGINE__IMAGE": image.build(), "ENGINE__LIMITS__MEMORY": MEMORY}
    gate = DockerGate(tmp_path_factory.mktemp("pairs"), settings=settings)
    gate.start()
    yield gate
    gate.close()


@pytest.fixture
def target(gate: DockerGate) -> Target:
    return Target(
        url=gate.url,
        platform_key=gate.platform_key,
        image=image.IMAGE,
        network=gate.network,
        memory=MEMORY,
        raw_port=free_port(),
    )


@pytest.fixture
def pooled(gate: DockerGate, tmp_path: Path) -> Iterator[DockerGate]:
    """Another, which keeps spares."""
    first = free_ports(POOL_PORTS, _APART)
    settings = {
        "ENGINE__IMAGE": image.IMAGE,
        "ENGINE__LIMITS__MEMORY": MEMORY,
        "POOL__SIZE": "3",
        "PORTS__MIN": str(first),
        "PORTS__MAX": str(first + POOL_PORTS - 1),
    }
    pooled = DockerGate(tmp_path, settings=settings)
    pooled.start()
    yield pooled
    pooled.close()


async def test_asleep_is_paused_for_docker(gate: DockerGate) -> None:
    """A sleeping engine's container is frozen, not stopped: its memory is as it was."""
    async with gate.http() as http:
        engine = (await admit(http, "ann"))["engine"]
        pid = gate.inspected(engine["engine_id"])["State"]["Pid"]
        await call(http, "ann", "sleep")
        state = gate.inspected(engine["engine_id"])["State"]
        assert (state["Status"], state["Paused"], state["Pid"]) == ("paused", True, pid)
        assert (await admit(http, "ann"))["action"] == "woke"
        assert gate.inspected(engine["engine_id"])["State"]["Status"] == "running"


def within_bound(
    measure: Callable[[], Coroutine[Any, Any, Pairs]],
    bound_ms: Callable[[Pairs], float],
    capsys: pytest.CaptureFixture[str],
) -> bool:
    """Whether the median keeps to its bound; others may be busy here, so it has three tries.

    What is really slow is so every time.
    """
    for _ in range(TRIES):
        pairs = asyncio.run(measure())
        with capsys.disabled():
            print(f"\n  {pairs}, allowed {bound_ms(pairs):.1f} ms", end="", flush=True)
        if pairs.ours_p50_ms <= bound_ms(pairs):
            return True
    return False


@quiet_machine
def test_a_wake_costs_little_more_than_unpause_and_probe(
    target: Target, capsys: pytest.CaptureFixture[str]
) -> None:
    """At most 1.3 times the raw wake or 5 ms more, whichever is more."""
    assert within_bound(
        partial(wakes, target, pairs=PAIRS),
        lambda pairs: max(pairs.raw_p50_ms * WAKE_RATIO, pairs.raw_p50_ms + WAKE_EXTRA_MS),
        capsys,
    )


@quiet_machine
def test_a_provision_costs_little_more_than_docker_takes_for_it(
    target: Target, capsys: pytest.CaptureFixture[str]
) -> None:
    """At most 1.2 times the raw volume, create, start and first good probe."""
    assert within_bound(
        partial(provisions, target, pairs=PAIRS),
        lambda pairs: pairs.raw_p50_ms * PROVISION_RATIO,
        capsys,
    )


async def test_a_first_admit_from_the_pool_takes_a_twentieth_of_a_cold_one(
    gate: DockerGate, pooled: DockerGate, capsys: pytest.CaptureFixture[str]
) -> None:
    """An engine that is there already only has to be written down as this user's."""
    cold, claimed = [], []
    async with gate.http() as bare, pooled.http() as full:
        for number in range(PAIRS // 5):
            await until_full(pooled)
            for http, found in ((full, claimed), (bare, cold)):
                began = time.perf_counter()
                await admit(http, f"pair-{number}")
                found.append((time.perf_counter() - began) * 1000)
            for http in (full, bare):
                await http.delete(f"/engines/pair-{number}")
    cold_ms, pool_ms = statistics.median(cold), statistics.median(claimed)
    with capsys.disabled():
        print(
            f"\n  first admit: p50 cold {cold_ms:.1f} ms, pool {pool_ms:.1f} ms", end="", flush=True
        )
    assert pool_ms <= cold_ms * POOL_SHARE


async def until_full(pooled: DockerGate) -> None:
    async with asyncio.timeout(60):
        while True:
            pool = (await asyncio.to_thread(pooled.admin, "GET", "/status")).json()["pool"]
            if pool["ready"] == pool["size"] and not pool["booting"]:
                return
            await asyncio.sleep(0.02)
