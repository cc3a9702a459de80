"""The border to the Docker Engine, against one that is scripted: faults, limits, events."""

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from enginegate.backends.base import BackendEvent, Connection, EngineSpec, Presence
from enginegate.backends.docker import DockerBackend, daemon, events, peers
from enginegate.backends.docker.budget import Budget, Priority
from enginegate.backends.docker.container import ENGINE_ID, INSTANCE
from enginegate.errors import BackendError, ConfigError, ImageUnavailableError, NotRunningError
from enginegate.sockets import Established

ENGINE = "5c2f0c3e-8f0b-4c1d-9a44-0d6a3a4b5c6d"
SPEC = EngineSpec(
    engine_id=ENGINE, engine_version="my-engine:1", port=9001, key_hashes=("ab" * 32,)
)
OURS = {ENGINE_ID: ENGINE, INSTANCE: "here"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def error(status: int, message: str) -> web.Response:
    return web.json_response({"message": message}, status=status)


class Script:
    """A Docker Engine that answers as told: `on["GET /path"]`; everything else is 404."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.on: dict[str, Handler] = {}
        self.asked: list[str] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path in {"/version", "/v1.41/version"}:
            return web.json_response({"ApiVersion": "1.41"})
        path = request.path.removeprefix("/v1.41")
        self.asked.append(f"{request.method} {path}")
        handler = self.on.get(self.asked[-1])
        return await handler(request) if handler else error(404, "no such thing")

    def always(self, route: str, make: Callable[[], web.Response]) -> None:
        async def handler(_: web.Request) -> web.Response:
            return make()

        self.on[route] = handler


@pytest.fixture
async def script() -> AsyncIterator[Script]:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are too long for a socket
        path = Path(folder) / "docker.sock"
        made = Script(f"unix://{path}")
        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", made.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.UnixSite(runner, str(path)).start()
        yield made
        await runner.cleanup()


@pytest.fixture
async def backend(script: Script) -> AsyncIterator[DockerBackend]:
    made = DockerBackend(instance="here", docker_host=script.address)
    await made.open()
    yield made
    await made.close()


INSPECT = f"GET /containers/enginegate-{ENGINE}/json"


async def test_an_engine_that_is_not_there_is_absent(
    backend: DockerBackend, script: Script
) -> None:
    """Docker's own 404 and a complete list without it make an engine absent, and nothing less."""
    with pytest.raises(BackendError) as caught:
        await backend.inspect(ENGINE)  # the list is a 404 too
    assert "404" in str(caught.value)
    row = {"Id": "c0" * 32, "State": "running", "Names": [f"/enginegate-{ENGINE}"]}
    script.always("GET /containers/json", lambda: web.json_response([row]))
    with pytest.raises(BackendError, match="listed, but not found") as caught:
        await backend.inspect(ENGINE)
    assert caught.value.unavailable
    script.always("GET /containers/json", lambda: web.json_response([]))
    script.always("GET /volumes", lambda: web.json_response({"Volumes": []}))
    seen = await backend.inspect(ENGINE)
    assert (seen.presence, seen.data_lost) == (Presence.ABSENT, True)


@pytest.mark.parametrize(
    "make",
    [
        lambda: error(500, "containerd is away"),
        lambda: error(503, "shutting down"),
        lambda: web.Response(text="<html>", content_type="text/html"),
        lambda: web.Response(text="{", content_type="application/json"),
        lambda: web.Response(status=500, text="[]", content_type="application/json"),
        lambda: web.json_response({"Id": "c0"}),
        lambda: web.json_response([]),
    ],
)
async def test_an_answer_that_tells_nothing_is_unavailable(
    backend: DockerBackend, script: Script, make: Callable[[], web.Response]
) -> None:
    """A failing daemon and a garbled answer are never taken for an absent engine."""
    script.always(INSPECT, make)
    with pytest.raises(BackendError) as caught:
        await backend.inspect(ENGINE)
    assert caught.value.unavailable
    assert (caught.value.operation, caught.value.engine_id) == ("inspect", ENGINE)


async def test_no_daemon_is_unavailable() -> None:
    """Opening does not need a daemon; asking one that is not there says so."""
    backend = DockerBackend(instance="here", docker_host="unix:///nonexistent/docker.sock")
    with pytest.raises(BackendError, match="not connected"):
        await backend.inspect(ENGINE)
    await backend.open()
    assert not await backend.ping()
    with pytest.raises(BackendError) as caught:
        await backend.inspect(ENGINE)
    assert caught.value.unavailable
    await backend.close()
    await backend.close()


async def test_ping_asks_past_a_full_budget(backend: DockerBackend, script: Script) -> None:
    """A long queue of calls is not a dead daemon."""
    script.always("GET /_ping", lambda: web.Response(text="OK"))
    script.on[INSPECT] = _never
    waiting = [asyncio.ensure_future(backend.inspect(ENGINE)) for _ in range(20)]
    await _until(lambda: len(script.asked) == 4)
    assert await backend.ping()
    assert script.asked.count(INSPECT) == 4  # probes leave the other places to the more urgent
    await _cancel(*waiting)
    assert backend._daemon.budget.free == daemon.IN_FLIGHT


async def test_a_hanging_daemon_is_given_up(
    backend: DockerBackend, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call has a deadline, and gives its place back."""
    monkeypatch.setattr(daemon, "_ASK_S", 0.05)
    script.on[INSPECT] = _never
    with pytest.raises(BackendError, match="no answer in time") as caught:
        await backend.inspect(ENGINE)
    assert caught.value.unavailable
    assert backend._daemon.budget.free == daemon.IN_FLIGHT


async def test_a_long_queue_is_waited_for_while_the_daemon_answers(
    backend: DockerBackend, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crowd takes longer than any call may: nobody in it is told that Docker is away."""
    monkeypatch.setattr(daemon, "_ASK_S", 0.2)

    async def slow(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.02)
        return web.json_response(_container("running"))

    script.on[INSPECT] = slow
    began = time.monotonic()
    seen = await asyncio.gather(*(backend.inspect(ENGINE) for _ in range(80)))
    assert {one.presence for one in seen} == {Presence.RUNNING}
    assert time.monotonic() - began > 0.3  # else it was no crowd


async def test_a_crowd_before_a_hanging_daemon_is_given_up_together(
    backend: DockerBackend, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody is answered, waiting for a place is waiting for the daemon."""
    monkeypatch.setattr(daemon, "_ASK_S", 0.2)
    script.on[INSPECT] = _never
    began = time.monotonic()
    ends = await asyncio.gather(
        *(backend.inspect(ENGINE) for _ in range(80)), return_exceptions=True
    )
    assert all(isinstance(end, BackendError) and end.unavailable for end in ends)
    assert time.monotonic() - began < 2
    assert backend._daemon.budget.free == daemon.IN_FLIGHT


async def test_a_late_answer_to_a_ping_is_no_dead_daemon_while_others_are_answered(
    backend: DockerBackend, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is about to make an engine is refused only where nobody hears anything."""
    monkeypatch.setattr(daemon, "_PING_S", 0.1)
    script.on["GET /_ping"] = _never
    script.always(INSPECT, lambda: web.json_response(_container("running")))
    asked = asyncio.ensure_future(backend.ping())
    await _until(lambda: "GET /_ping" in script.asked)
    await backend.inspect(ENGINE)
    assert await asked
    assert not await backend.ping()


async def test_a_listing_is_complete_or_fails(backend: DockerBackend, script: Script) -> None:
    """A container that cannot be inspected fails the whole listing: nothing is left out."""
    row = _row("running")
    script.always("GET /containers/json", lambda: web.json_response([row]))
    script.always(INSPECT, lambda: error(500, "dead"))
    with pytest.raises(BackendError) as caught:
        await backend.list()
    assert caught.value.unavailable
    del script.on[INSPECT]
    assert await backend.list() == []


@pytest.mark.parametrize("engine_id", ["", "../images/json?x=", ENGINE.upper()])
async def test_no_foreign_text_reaches_the_daemon(
    backend: DockerBackend, script: Script, engine_id: str
) -> None:
    """An id that is not one of ours is refused before anything is asked."""
    for verb in (backend.inspect, backend.pause, backend.destroy, backend.usage):
        with pytest.raises(BackendError, match="no engine id"):
            await verb(engine_id)
    assert script.asked == []


@pytest.mark.parametrize("image", ["", "UPPER", "a b", "x?y=z", "../x", "a" * 600])
async def test_an_impossible_image_is_refused_without_asking(
    backend: DockerBackend, script: Script, image: str
) -> None:
    """What is no image reference gets into no path of Docker's API."""
    spec = EngineSpec(engine_id=ENGINE, engine_version=image, port=9001, key_hashes=("ab" * 32,))
    with pytest.raises(ImageUnavailableError):
        await backend.start(spec)
    assert script.asked == []


async def test_an_image_that_cannot_be_pulled_is_named(
    backend: DockerBackend, script: Script
) -> None:
    """The error's detail is the image alone, for it is shown to callers."""
    failed = json.dumps({"errorDetail": {"message": "denied by 10.0.0.5"}, "error": "denied"})
    script.always(
        "POST /images/create", lambda: web.Response(text=failed, content_type="application/json")
    )
    with pytest.raises(ImageUnavailableError) as caught:
        await backend.start(SPEC)
    assert caught.value.detail == "my-engine:1"
    assert not caught.value.unavailable


async def test_a_lost_daemon_does_not_blame_the_image(
    backend: DockerBackend, script: Script
) -> None:
    """A pull that breaks because the daemon is away is no verdict on the image."""
    script.always("POST /images/create", lambda: error(503, "shutting down"))
    script.always("GET /_ping", lambda: error(503, "shutting down"))
    with pytest.raises(BackendError) as caught:
        await backend.start(SPEC)
    assert not isinstance(caught.value, ImageUnavailableError)
    assert caught.value.unavailable


async def test_a_pull_is_asked_for_only_what_is_missing(
    backend: DockerBackend, script: Script
) -> None:
    """A missing image is pulled, once, before anything of the engine is made."""
    found = "GET /images/my-engine:1/json"

    async def pull(request: web.Request) -> web.Response:
        script.always(found, lambda: web.json_response({"Config": {"User": ""}}))
        return web.Response(text='{"status": "done"}', content_type="application/json")

    script.on["POST /images/create"] = pull
    script.always("GET /networks", lambda: error(400, "so far and no further"))
    for _ in range(2):
        with pytest.raises(BackendError, match="no further"):
            await backend.start(SPEC)
    assert script.asked.count("POST /images/create") == 1
    assert "POST /containers/create" not in script.asked


async def test_a_failed_freeze_is_taken_back(backend: DockerBackend, script: Script) -> None:
    """After a pause that Docker reports as failed, the engine is thawed, and the error told."""
    script.always(INSPECT, lambda: web.json_response(_container("running")))
    script.always(f"POST /containers/{'c0' * 32}/pause", lambda: error(500, "freezer is stuck"))
    with pytest.raises(BackendError, match="freezer is stuck"):
        await backend.pause(ENGINE)
    assert script.asked[-1] == f"POST /containers/{'c0' * 32}/unpause"


@pytest.mark.parametrize(
    ("verb", "before", "after"), [("pause", "running", "paused"), ("unpause", "paused", "running")]
)
async def test_a_verb_that_came_late_is_done(
    backend: DockerBackend, script: Script, verb: str, before: str, after: str
) -> None:
    """Where somebody else was faster, what we wanted is so, whatever code Docker has for that."""
    script.always(INSPECT, lambda: web.json_response(_container(before)))

    async def refuse(_: web.Request) -> web.Response:
        script.always(INSPECT, lambda: web.json_response(_container(after)))
        return error(500, "already so")

    script.on[f"POST /containers/{'c0' * 32}/{verb}"] = refuse
    await getattr(backend, verb)(ENGINE)


async def test_a_wake_thaws_what_we_froze_without_looking(
    backend: DockerBackend, script: Script
) -> None:
    """One call, by the id that was checked when it was frozen; only the first time."""
    thaw = f"POST /containers/{'c0' * 32}/unpause"
    script.always(INSPECT, lambda: web.json_response(_container("running")))
    for verb in ("pause", "unpause"):
        path = f"POST /containers/{'c0' * 32}/{verb}"
        script.always(path, lambda: web.Response(status=204))
    await backend.pause(ENGINE)
    script.asked.clear()
    seen = await backend.unpause(ENGINE)
    assert script.asked == [thaw]
    assert (seen.presence, seen.engine_id) == (Presence.RUNNING, ENGINE)
    await backend.unpause(ENGINE)
    assert script.asked[1] == INSPECT


@pytest.mark.parametrize("code", [404, 409, 500])
async def test_a_wake_of_what_others_changed_looks_closer(
    backend: DockerBackend, script: Script, code: int
) -> None:
    """The container that was frozen is gone or thawed: what is there now decides."""
    script.always(INSPECT, lambda: web.json_response(_container("running")))
    script.always(f"POST /containers/{'c0' * 32}/pause", lambda: web.Response(status=204))
    script.always(f"POST /containers/{'c0' * 32}/unpause", lambda: error(code, "no such freeze"))
    await backend.pause(ENGINE)
    assert (await backend.unpause(ENGINE)).presence is Presence.RUNNING
    script.always(INSPECT, lambda: error(404, "no such container"))
    with pytest.raises(NotRunningError):
        await backend.unpause(ENGINE)


def test_our_own_secrets_are_not_passed_through() -> None:
    """A variable of enginegate itself in `env_passthrough` is a fault of configuration."""
    with pytest.raises(ConfigError, match="ENGINEGATE_MASTER_KEY"):
        DockerBackend(instance="here", env_passthrough=["ENGINEGATE_MASTER_KEY"])


@pytest.mark.parametrize("address", ["garbage", "ssh://there", "npipe:////./pipe/docker"])
def test_an_address_that_cannot_be_spoken_to_is_a_fault_of_configuration(address: str) -> None:
    """It is told with what would do, before anything is asked."""
    with pytest.raises(ConfigError, match=r"DOCKER_HOST: .*unix://"):
        DockerBackend(instance="here", docker_host=address)


def test_url_is_the_published_port_or_the_name_on_the_network() -> None:
    """Products on the host use the port, products on the network the container's name."""
    host = DockerBackend(instance="here", advertise_host="10.1.2.3")
    six = DockerBackend(instance="here", advertise_host="::1")
    inside = DockerBackend(instance="here", url_mode="network", container_port=80)
    assert host.url(SPEC) == "http://10.1.2.3:9001"
    assert six.url(SPEC) == "http://[::1]:9001"
    assert inside.url(SPEC) == f"http://enginegate-{ENGINE}:80"


@pytest.mark.parametrize(("url_mode", "warned"), [("network", True), ("host", False)])
async def test_engines_that_reach_each_other_are_warned_about(
    caplog: pytest.LogCaptureFixture, url_mode: str, warned: bool
) -> None:
    """Where products reach engines by name, engines do too; said at every start."""
    backend = DockerBackend(instance="here", url_mode=url_mode, network="shared")
    await backend.open()
    await backend.close()
    assert ("can reach each other on network shared" in caplog.text) is warned


async def test_events_are_redialled_with_a_resync(
    backend: DockerBackend, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that ends is opened again a little earlier; doubles are dropped, losses told."""
    monkeypatch.setattr(events, "_REDIAL_S", 0.01)
    streams = [[_event("start", 1), _event("die", 2)], [_event("die", 2), _event("start", 3)]]
    since: list[float] = []

    async def serve(request: web.Request) -> web.StreamResponse:
        since.append(float(request.query.get("since", 0)))
        response = web.StreamResponse()
        await response.prepare(request)
        for told in streams.pop(0) if streams else []:
            await response.write(json.dumps(told).encode() + b"\n")
        return response

    script.on["GET /events"] = serve
    seen: list[BackendEvent] = []
    async with asyncio.timeout(5), aclosing(backend.watch()) as watching:
        async for event in watching:
            seen.append(event)
            if len(seen) == 6:
                break
    kinds = ["resync", "started", "exited", "blind", "resync", "started"]
    assert [event.kind for event in seen] == kinds
    assert seen[2] == BackendEvent(kind="exited", engine_id=ENGINE, exit_code=137)
    assert since[0] == pytest.approx(time.time(), abs=5)
    assert since[1] == pytest.approx(_AT_S + 2 - 5, abs=0.01)


async def test_a_lost_daemon_is_redialled_for_ever(
    backend: DockerBackend, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refusals and garbage end no watch; blindness is told once, and each stream resyncs."""
    monkeypatch.setattr(events, "_REDIAL_S", 0.01)
    monkeypatch.setattr(events, "_REDIAL_MAX_S", 0.01)
    answers = [error(500, "no"), error(404, "no"), web.Response(text="garbage\n")]

    async def serve(request: web.Request) -> web.StreamResponse:
        return answers.pop(0) if answers else web.Response(text=json.dumps(_event("die", 1)) + "\n")

    script.on["GET /events"] = serve
    async with asyncio.timeout(5), aclosing(backend.watch()) as watching:
        kinds = [(await anext(watching)).kind for _ in range(6)]
    assert kinds == ["blind", "resync", "resync", "blind", "resync", "exited"]


async def test_the_most_urgent_waiter_comes_first() -> None:
    """A wake overtakes every sleep and probe that waits, whoever came first."""
    budget = Budget(1)
    order: list[Priority] = []

    async def work(priority: Priority) -> None:
        async with budget.place(priority):
            order.append(priority)

    async with budget.place(Priority.PROBE):
        tasks = [asyncio.ensure_future(work(priority)) for priority in reversed(Priority)]
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert order == list(Priority)
    assert budget.free == 1


async def test_a_cancelled_waiter_takes_no_place_along() -> None:
    """Callers may leave at any moment, also in the very one in which their turn comes."""
    budget = Budget(1)

    async def work() -> None:
        async with budget.place(Priority.WAKE):
            await asyncio.Event().wait()

    async with budget.place(Priority.PROBE):
        waiting = asyncio.ensure_future(work())
        chosen = asyncio.ensure_future(work())
        await asyncio.sleep(0)
        await _cancel(waiting)
    chosen.cancel()  # its turn is set, but it has not run yet
    await _cancel(chosen)
    assert budget.free == 1


GATEWAY = "172.18.0.1"


@pytest.mark.parametrize(
    ("container", "host", "own", "expected"),
    [
        ([], [], [], []),
        ([("127.0.0.1", 1, 0.0)], [], [], []),  # the container's own health check
        ([("10.0.0.9", 1, 3.0)], [], [], [3.0]),
        ([("10.0.0.9", 1, 3.0)], [], [("10.0.0.9", 1)], []),
        ([(GATEWAY, 1, 0.0)], [("127.0.0.1", 7, 9.0)], [], [9.0]),
        ([(GATEWAY, 1, 0.0)], [("127.0.0.1", 7, 9.0)], [("127.0.0.1", 7)], []),
        ([(GATEWAY, 1, 4.0), (GATEWAY, 2, 2.0)], [("127.0.0.1", 7, 9.0)], [], [9.0, 2.0]),
        ([], [("127.0.0.1", 7, 9.0)], [], []),
    ],
)
def test_connections_behind_the_proxy_are_told_by_their_clients(
    container: list[tuple[str, int, float]],
    host: list[tuple[str, int, float]],
    own: list[tuple[str, int]],
    expected: list[float],
) -> None:
    """The proxy's clients stand for its connections; what it does not explain counts as well."""
    found = peers.connections(
        [Established(*one) for one in container],
        [Established(*one) for one in host],
        gateways={GATEWAY},
        own=own,
    )
    assert found == [Connection(quiet_s=quiet_s) for quiet_s in expected]


def test_a_table_from_inside_is_read_like_the_hosts() -> None:
    """Only established connections to the port count, in both families."""
    table = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n"
        "   0: 00000000:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n"
        "   1: 020012AC:1F40 010012AC:A001 01 00000000:00000000 00:00000000 00000000     0\n"
        "   2: 020012AC:1F41 010012AC:A002 01 00000000:00000000 00:00000000 00000000     0\n"
        "  sl  local_address                         remote_address                        st\n"
        "   0: 0000000000000000FFFF0000020012AC:1F40 0000000000000000FFFF0000010012AC:A003 01 \n"
    )
    assert list(peers.parse_table(table, 8000)) == [
        Established("172.18.0.1", 0xA001, 0.0),
        Established("172.18.0.1", 0xA003, 0.0),
    ]


_AT_S = int(time.time()) + 3600  # later than any watch began


def _event(action: str, at_s: int) -> dict[str, Any]:
    told = (
        OURS | {"name": f"enginegate-{ENGINE}"} | ({"exitCode": "137"} if action == "die" else {})
    )
    return {
        "Type": "container",
        "Action": action,
        "Actor": {"ID": "c0" * 32, "Attributes": told},
        "timeNano": (_AT_S + at_s) * 10**9,
    }


def _row(state: str) -> dict[str, Any]:
    return {
        "Id": "c0" * 32,
        "Names": [f"/enginegate-{ENGINE}"],
        "Labels": OURS,
        "State": state,
        "Status": "Up 3 minutes",
    }


def _container(status: str) -> dict[str, Any]:
    return {
        "Id": "c0" * 32,
        "Name": f"/enginegate-{ENGINE}",
        "Image": "sha256:d1",
        "State": {"Status": status},
        "Config": {"Labels": OURS},
        "HostConfig": {"NetworkMode": "engine_net"},
        "NetworkSettings": {"Networks": {"engine_net": {}}},
    }


async def _never(_: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.001)


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
