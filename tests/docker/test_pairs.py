"""What enginegate adds to Docker's own time: pairs with the raw calls, medians, ratios."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any

import pytest

from bench.docker_pairs import Pairs, Target, provisions, wakes
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
MEMORY = "64m"


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
