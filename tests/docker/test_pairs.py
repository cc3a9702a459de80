"""What enginegate adds to Docker's own time: pairs with the raw calls, medians, ratios."""

import asyncio
from collections.abc import Iterator

import pytest

from bench.docker_pairs import Pairs, Target, provisions, wakes
from tests.docker.gate import DockerGate, admit, call, free_ports
from tests.docker.size import LONG

pytestmark = pytest.mark.docker

PAIRS = 50 if LONG else 15
WAKE_RATIO, WAKE_EXTRA_MS = 1.3, 5.0
PROVISION_RATIO = 1.2


@pytest.fixture(scope="module")
def gate(tiny_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerGate]:
    gate = DockerGate(tmp_path_factory.mktemp("pairs"))
    gate.start()
    yield gate
    gate.close()


@pytest.fixture
def target(gate: DockerGate, tiny_image: str) -> Target:
    return Target(
        url=gate.url,
        platform_key=gate.platform_key,
        image=tiny_image,
        network=gate.network,
        memory="32m",
        raw_port=free_ports(),
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


def told(pairs: Pairs, capsys: pytest.CaptureFixture[str]) -> Pairs:
    with capsys.disabled():
        print(f"\n  {pairs}")
    return pairs


def test_a_wake_costs_little_more_than_unpause_and_probe(
    target: Target, capsys: pytest.CaptureFixture[str]
) -> None:
    """At most 1.3 times the raw wake or 5 ms more, whichever is more."""
    pairs = told(asyncio.run(wakes(target, pairs=PAIRS)), capsys)
    allowed_ms = max(pairs.raw_p50_ms * WAKE_RATIO, pairs.raw_p50_ms + WAKE_EXTRA_MS)
    assert pairs.ours_p50_ms <= allowed_ms


def test_a_provision_costs_little_more_than_docker_takes_for_it(
    target: Target, capsys: pytest.CaptureFixture[str]
) -> None:
    """At most 1.2 times the raw volume, create, start and first good probe."""
    pairs = told(asyncio.run(provisions(target, pairs=PAIRS)), capsys)
    assert pairs.ratio <= PROVISION_RATIO
