"""The contract, sentence by sentence: sections 1, 2, 3 and 5 through the HTTP API in memory.

One class per section, and for a long one, one per topic. Where each section is shown:

1   states             here
2   HTTP API           here; one module's own matters beside it: `test_auth` (keys), `test_events`
                       (the stream), `test_exposition` (Prometheus text), `test_body` (what is
                       refused as a request), `test_hot_path` (the short road), `test_openapi`
3   the engine's side  tests/e2e/test_contract_engines_side.py (real processes), key rotation here
5   durability         tests/e2e/test_contract_durability.py, tests/e2e/test_kill.py (kill -9 amid
                       mixed verbs), tests/journal (files, damage, power loss); answers here
6   configuration      tests/e2e/test_contract_configuration.py, tests/core/test_config.py
7   command line       tests/e2e/test_contract_command_line.py, tests/e2e/test_cli.py, test_demo.py

Across sections: tests/e2e/test_crowd.py (many at once, clients that leave), test_failing_engines.py
(crashes, illness, boots that come to nothing), test_secrecy.py (no key anywhere), and
tests/service (the same promises where only a clock and a fake backend can show them).

What cannot be shown here:

- Only containers (tests/backends/test_docker.py, test_container.py, test_docker_daemon.py): names,
  labels, networks, restart policy and limits, `url_mode`, pulls outside the boot time-out and an
  image that cannot be had, digests in the trail, a daemon that is away, `die` and other events,
  containers changed behind our back, lost volumes, `put_key` into a stopped container.
- Only full disks and failing or lying syncs (tests/journal): the reserve for stop and destroy,
  writing that resumes by itself, a sync that is never retried, power loss, tmpfs and network
  file systems. What the API says meanwhile is here.
- Only an inherited socket and the HTTP edge: a restart under load that fails no request, 431,
  408, and connection limits belong to the tests of the edge.
- Pool, deep sleep (`stop_after_s`, memory tiers) and `idle simulate`: their keys and the empty
  `pool` of `/status` are here, what they do is shown where they are made.
"""

import asyncio
import re
import threading
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest

from enginegate import admission
from enginegate.api.problems import STATUS
from enginegate.audit import ALL_ACTIONS
from enginegate.backends.base import Connection, Presence
from enginegate.config import EngineSettings, Health, Idle, Ports, Restart
from enginegate.keys import digest_hex
from enginegate.lifecycle import sleeping, stopping, verbs
from enginegate.model import Status
from tests.api.conftest import OpenGate
from tests.api.provocations import BY_CODE, internal_error, payload_too_large, quota_exceeded
from tests.api.rig import ADMIN, PATIENCE_S, Gate, admitted, code, reach, refused, until
from tests.fakes import FakeEngine, Hang

EIGHT = {
    "engine_id",
    "user_id",
    "status",
    "url",
    "api_key",
    "engine_version",
    "created_at",
    "last_health_at",
}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
STATES = [status.value for status in Status]

UP = {"running": "running", "sleeping": "paused", "stopped": "stopped", "failed": "stopped"}
RESTING = ("running", "sleeping", "stopped", "failed")

# What each verb leads to from each state an engine can rest in: the next state, or the refusal.
VERBS: dict[str, dict[str, str]] = {
    "start": {
        "running": "ENGINE_ALREADY_RUNNING",
        "sleeping": "running",
        "stopped": "running",
        "failed": "running",
    },
    "stop": {
        "running": "stopped",
        "sleeping": "stopped",
        "stopped": "ENGINE_NOT_RUNNING",
        "failed": "stopped",
    },
    "sleep": {
        "running": "sleeping",
        "sleeping": "ENGINE_NOT_RUNNING",
        "stopped": "ENGINE_NOT_RUNNING",
        "failed": "ENGINE_NOT_RUNNING",
    },
    "rotate-key": {
        "running": "running",
        "sleeping": "ENGINE_NOT_RUNNING",
        "stopped": "ENGINE_NOT_RUNNING",
        "failed": "ENGINE_NOT_RUNNING",
    },
    "touch": {
        "running": "running",
        "sleeping": "ENGINE_NOT_RUNNING",
        "stopped": "ENGINE_NOT_RUNNING",
        "failed": "ENGINE_NOT_RUNNING",
    },
}

# Work that can be under way on an engine: from which state, and where the backend is at it.
AT_WORK = {
    "wake": ("sleeping", "unpause"),
    "start": ("stopped", "start"),
    "restart": ("failed", "start"),
    "rotate-key": ("running", "start"),
    "stop": ("running", "stop"),
    "sleep": ("running", "pause"),
}


async def begin(gate: Gate, work: str) -> "tuple[Hang, asyncio.Task[httpx.Response] | None]":
    """Let the work be under way on the engine of `ann`, hanging in the backend."""
    state, operation = AT_WORK[work]
    await reach(gate, state)
    hang = gate.backend.hang(operation)
    call = None
    if work == "restart":
        await gate.clock.advance(gate.config.restart.backoff_max_s)
        gate.health.begin_due_restarts()
    elif work == "wake":
        call = gate.spawn(gate.admit(auto_wake=True))
    else:
        call = gate.spawn(gate.post(f"/engines/ann/{work}"))
    await hang.reached.wait()
    return hang, call


async def state_of(gate: Gate, user_id: str = "ann") -> str:
    """Return the state that a look-up shows."""
    status: str = (await gate.get(f"/engines/{user_id}")).json()["status"]
    return status


class TestSection1States:
    """Six states, and which verb leads from which to which."""

    @pytest.mark.parametrize("state", RESTING)
    async def test_process_volume_and_key_are_those_of_the_state(
        self, gate: Gate, state: str
    ) -> None:
        """Up, frozen or stopped; data and key are kept in every state."""
        made = await gate.engine()
        gate.backend.world.volumes[made["engine_id"]]["notes"] = "mine"
        match state:
            case "failed":
                await gate.fail()
            case "sleeping":
                await gate.post("/engines/ann/sleep")
            case "stopped":
                await gate.post("/engines/ann/stop")

        assert await state_of(gate) == state
        assert gate.fake().presence == UP[state]
        assert gate.backend.world.volumes[made["engine_id"]] == {"notes": "mine"}
        assert (await gate.get("/engines/ann")).json()["api_key"] == made["api_key"]

    async def test_a_booting_engine_has_its_place_and_its_sealed_key(self, gate: Gate) -> None:
        """While `provisioning` there are a port and a key, and no clear key in the row."""
        await reach(gate, "provisioning")
        shown = (await gate.get("/engines/ann")).json()

        assert (shown["status"], shown["url"]) == ("provisioning", "http://127.0.0.1:9001")
        assert shown["api_key"].startswith("sk-eg-")
        assert shown["api_key"] not in repr(gate.live().engine)

    async def test_destroyed_is_not_a_state(self, gate: Gate) -> None:
        """The row is gone: no look-up, list or status shows it any more."""
        await gate.engine()
        await gate.call("DELETE", "/engines/ann")

        assert code(await gate.get("/engines/ann")) == "ENGINE_NOT_FOUND"
        assert (await gate.get("/engines")).json() == {"engines": [], "total": 0}
        assert (await gate.get("/status")).json()["by_status"] == dict.fromkeys(STATES, 0)

    @pytest.mark.parametrize("verb", VERBS)
    @pytest.mark.parametrize("state", RESTING)
    async def test_who_may_do_what_from_where(self, gate: Gate, state: str, verb: str) -> None:
        """Every verb from every state it may meet: the next state, or a conflict and no change."""
        await reach(gate, state)
        answer = await gate.post(f"/engines/ann/{verb}")
        expected = VERBS[verb][state]

        if expected.isupper():
            assert (answer.status_code, code(answer)) == (409, expected)
            assert answer.json()["error"]["status"] == state
            assert await state_of(gate) == state
        else:
            assert answer.status_code == 200, answer.text
            assert await state_of(gate) == expected

    @pytest.mark.parametrize("work", AT_WORK)
    async def test_work_under_way_shows_the_state_it_came_from(self, gate: Gate, work: str) -> None:
        """A reader never sees a state that no table has."""
        hang, call = await begin(gate, work)

        assert await state_of(gate) == AT_WORK[work][0]
        assert (await gate.get(f"/engines?status={AT_WORK[work][0]}")).json()["total"] == 1
        hang.release()
        if call is not None:
            assert (await call).status_code == 200

    @pytest.mark.parametrize("work", AT_WORK)
    async def test_delete_works_during_all_work(self, gate: Gate, work: str) -> None:
        """What is under way is overtaken, its caller answered, and nothing is left."""
        _, call = await begin(gate, work)
        answer = await gate.call("DELETE", "/engines/ann")

        assert (answer.status_code, answer.json()["status"]) == (200, "destroyed")
        assert code(await gate.get("/engines/ann")) == "ENGINE_NOT_FOUND"
        assert not gate.backend.world.engines
        assert not gate.backend.world.volumes
        if work == "wake":
            assert (await call).json()["reason"] == "engine_destroying"  # type: ignore[misc]
        elif call is not None:
            assert code(await call) == "ENGINE_NOT_FOUND"

    async def test_delete_works_during_a_boot(self, gate: Gate) -> None:
        """The one who provisions hears that the engine is gone; the port is free again."""
        hang = gate.backend.hang("start")
        booting = gate.spawn(gate.post("/engines/provision", {"user_id": "ann"}))
        await hang.reached.wait()
        assert (await gate.call("DELETE", "/engines/ann")).status_code == 200

        assert code(await booting) == "ENGINE_NOT_FOUND"
        assert (await gate.engine())["url"] == "http://127.0.0.1:9001"

    async def test_a_boot_ends_by_its_deadline(self, gate: Gate) -> None:
        """Nothing stays `provisioning`: after `boot.timeout_s` it is `failed`."""
        gate.backend.boot_s = 1e9
        call = gate.spawn(gate.post("/engines/provision", {"user_id": "ann"}))
        await until(lambda: bool(gate.registry.by_slug["demo"].engines))
        await gate.clock.advance(gate.config.boot.timeout_s - 1)
        assert await state_of(gate) == "provisioning"
        answer = await gate.settled(call)

        assert (answer.status_code, code(answer)) == (504, "BOOT_TIMEOUT")
        assert await state_of(gate) == "failed"

    async def test_a_boot_that_a_crash_cut_in_half_ends_too(self, open_gate: OpenGate) -> None:
        """The next start owns it, with a new deadline."""
        async with open_gate() as before:
            await reach(before, "provisioning")
        async with open_gate(after=before) as gate:
            assert (await admitted(gate))["engine"]["status"] == "running"

    async def test_a_teardown_has_a_deadline_and_an_owner(
        self, open_gate: OpenGate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The caller hears that it takes longer; it is finished later, also after a crash."""
        monkeypatch.setattr(verbs, "DESTROY_S", 0.05)
        async with open_gate() as before:
            await before.engine("ann")
            await before.engine("bob")
            for user_id in ("ann", "bob"):
                before.backend.hang("destroy")
                answer = await before.call("DELETE", f"/engines/{user_id}")
                assert (answer.status_code, code(answer)) == (503, "BACKEND_UNAVAILABLE")
                assert await state_of(before, user_id) == "destroying"
                if user_id == "ann":
                    await before.recovery.compare()
                    await until(lambda: "ann" not in before.registry.by_slug["demo"].engines)
        async with open_gate(after=before) as gate:
            await until(lambda: not gate.registry.engines)
            assert not gate.backend.world.volumes

    async def test_stop_gives_thirty_seconds(self, gate: Gate) -> None:
        """SIGTERM, wait, SIGKILL: an engine that does not listen is killed after 30 s."""
        await gate.engine()
        gate.fake().ignores_sigterm = True
        call = gate.spawn(gate.post("/engines/ann/stop"))
        await until(lambda: gate.backend.count("stop") == 1)
        await gate.clock.advance(29.9)
        assert gate.fake().alive
        await gate.clock.advance(0.2)

        assert (await call).json() == {"status": "stopped"}
        assert gate.fake().exit_code == 137

    async def test_stop_cancels_a_planned_restart(self, gate: Gate) -> None:
        """Who stops a failed engine does not find it up again."""
        await reach(gate, "failed")
        await gate.post("/engines/ann/stop")
        await gate.clock.advance(gate.config.restart.backoff_max_s)
        gate.health.begin_due_restarts()
        await gate.durable()

        assert await state_of(gate) == "stopped"
        assert not gate.fake().alive

    @pytest.mark.parametrize(
        ("state", "expected"), [("stopped", "BOOT_TIMEOUT"), ("sleeping", "WAKE_TIMEOUT")]
    )
    async def test_a_start_that_does_not_get_healthy_fails_the_engine(
        self, gate: Gate, state: str, expected: str
    ) -> None:
        """The caller gets 504, and the engine is `failed` with a restart planned."""
        await reach(gate, state)
        gate.fake().healthy = False
        answer = await gate.slowly(gate.post("/engines/ann/start"))

        assert (answer.status_code, code(answer)) == (504, expected)
        assert (await refused(gate))["reason"] == "engine_restarting"

    async def test_a_start_resets_the_restart_count(self, open_gate: OpenGate) -> None:
        """After giving up, `start` is the way back, and all attempts are there again."""
        async with open_gate(restart=Restart(max_attempts=1, backoff_max_s=10)) as gate:
            gate.run_loops()
            await gate.engine()
            for _ in range(2):
                gate.backend.fail("start")
                gate.backend.crash(gate.live().engine.engine_id)
                await gate.pass_time(6)
                assert (await refused(gate))["reason"] == "engine_unhealthy"
                assert (await gate.post("/engines/ann/start")).status_code == 200
                assert gate.live().engine.restart_attempts == 0
            attempts = await gate.audit(action="auto_restart_start")
            assert [entry["metadata"]["attempt"] for entry in attempts] == [1, 1]

    async def test_place_data_and_version_last_for_life(self, gate: Gate) -> None:
        """Whatever is done to it, port, url, volume and image stay."""
        made = await gate.engine()
        volume = gate.backend.world.volumes[made["engine_id"]]
        await gate.engine("bob")
        for verb in ("sleep", "start", "stop", "start", "rotate-key", "sleep", "stop", "start"):
            assert (await gate.post(f"/engines/ann/{verb}")).status_code == 200, verb
            now = (await gate.get("/engines/ann")).json()
            for name in ("engine_id", "url", "engine_version", "created_at"):
                assert now[name] == made[name], (verb, name)
            assert gate.backend.world.volumes[made["engine_id"]] is volume

    async def test_a_port_held_by_another_program_is_left_to_it(self, gate: Gate) -> None:
        """The engine starts on the next free port, and every answer has the new url."""
        await reach(gate, "stopped")
        await gate.engine("bob")
        gate.backend.world.taken_ports.add(9001)
        answer = await gate.post("/engines/ann/start")

        assert answer.json() == {"status": "running", "url": "http://127.0.0.1:9003"}
        assert (await gate.get("/engines/ann")).json()["url"] == "http://127.0.0.1:9003"
        assert (await admitted(gate))["engine"]["url"] == "http://127.0.0.1:9003"

    @pytest.mark.parametrize(
        ("state", "expected"),
        [
            ("stopped", 200),
            ("failed", 200),
            ("running", 409),
            ("sleeping", 409),
        ],
    )
    async def test_the_upgrade_road_leads_from_stopped_or_failed(
        self, open_gate: OpenGate, state: str, expected: int
    ) -> None:
        """Another allowed image on the same volume; from elsewhere nothing changes."""
        engine = EngineSettings(image="app:1", allowed_images=("app:2",))
        async with open_gate(engine=engine) as gate:
            await reach(gate, state)
            volume = gate.backend.world.volumes[gate.live().engine.engine_id]
            answer = await gate.post("/engines/ann/start", {"engine_version": "app:2"})

            assert answer.status_code == expected
            shown = (await gate.get("/engines/ann")).json()
            assert shown["engine_version"] == ("app:2" if expected == 200 else "app:1")
            assert gate.backend.world.volumes[gate.live().engine.engine_id] is volume


class TestSection2Api:
    """JSON in, JSON out, no version prefix."""

    async def test_answers_are_json_that_nobody_keeps(self, gate: Gate) -> None:
        """An answer may carry a key, so no cache on the way stores it or guesses its type."""
        await gate.engine()
        for answer in (await gate.get("/engines/ann"), await gate.admit(), await gate.get("/x")):
            assert answer.headers["content-type"] == "application/json"
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["x-content-type-options"] == "nosniff"

    async def test_ids_are_uuids_and_times_rfc_3339(self, gate: Gate) -> None:
        """A client can parse both without asking us how."""
        engine = await gate.engine()

        assert str(UUID(engine["engine_id"])) == engine["engine_id"]
        assert TIME.fullmatch(engine["created_at"])
        assert TIME.fullmatch(engine["last_health_at"])

    async def test_an_empty_body_counts_as_an_empty_object(self, gate: Gate) -> None:
        """Where no field is required, nothing has to be sent; elsewhere the field is named."""
        await gate.engine()
        product_id = gate.registry.by_slug["demo"].product.product_id
        rotate = await gate.client.post(
            f"/products/{product_id}/rotate-platform-key", headers=ADMIN, content=b""
        )
        assert rotate.status_code == 200
        headers = {"X-Platform-Key": rotate.json()["platform_api_key"]}
        for verb in ("admit", "touch", "rotate-key", "sleep", "start", "stop"):
            answer = await gate.client.post(f"/engines/ann/{verb}", headers=headers)
            assert answer.status_code == 200, verb
        answer = await gate.client.post("/engines/provision", headers=headers)
        assert (answer.status_code, code(answer)) == (400, "INVALID_REQUEST")
        assert "user_id" in answer.json()["error"]["message"]

    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("POST", "/engines/provision", {"user_id": "bob"}),
            *(("POST", f"/engines/ann/{verb}", {}) for verb in ("admit", "touch", "start", "stop")),
            *(("POST", f"/engines/ann/{verb}", {}) for verb in ("sleep", "rotate-key")),
            ("POST", "/products/register", {"slug": "x", "display_name": "X"}),
            ("PUT", "/products/{product_id}/policy", {"policy": {}}),
            ("POST", "/products/{product_id}/rotate-platform-key", {}),
            ("DELETE", "/engines/ann", {}),
            ("DELETE", "/products/{product_id}", {}),
        ],
    )
    async def test_unknown_fields_are_refused_everywhere(
        self, gate: Gate, method: str, path: str, body: dict[str, Any]
    ) -> None:
        """A slip of the pen must not be passed over in silence; nothing has happened."""
        await gate.engine()
        product_id = gate.registry.by_slug["demo"].product.product_id
        trail = await gate.audit()
        call = gate.admin if path.startswith("/products") else gate.call
        answer = await call(method, path.format(product_id=product_id), body | {"unknwon": 1})

        assert (answer.status_code, code(answer)) == (400, "INVALID_REQUEST")
        assert "unknwon" in answer.json()["error"]["message"]
        assert await gate.audit() == trail

    async def test_head_works_where_get_does(self, gate: Gate) -> None:
        """A monitor may ask for headers alone."""
        assert (await gate.client.head("/health")).status_code == 200

    async def test_a_user_may_be_named_like_a_path(self, gate: Gate) -> None:
        """A user called `provision` is a user like any other."""
        await gate.engine("provision")

        assert (await gate.get("/engines/provision")).json()["user_id"] == "provision"
        assert (await gate.call("DELETE", "/engines/provision")).status_code == 200

    async def test_user_ids_in_paths_may_be_percent_encoded(self, gate: Gate) -> None:
        """Every allowed character works, encoded or not, on both roads."""
        user_id = "a.b_c@d|e:f+g=h~i-j"
        encoded = "".join(f"%{ord(c):02X}" for c in user_id)
        await gate.engine(user_id)

        for path in (user_id, encoded):
            assert (await gate.get(f"/engines/{path}")).json()["user_id"] == user_id
            assert (await gate.admit(path)).json()["engine"]["user_id"] == user_id


class TestSection21EngineObject:
    """The engine object, the look-up and the list."""

    async def test_a_look_up_has_exactly_eight_keys(self, gate: Gate) -> None:
        """Nothing of our inside shows, nothing promised is missing."""
        engine = await gate.engine()

        assert set(engine) == EIGHT
        assert engine["status"] == "running"
        assert engine["url"] == "http://127.0.0.1:9001"
        assert engine["api_key"].startswith("sk-eg-")

    async def test_an_unknown_user_has_no_engine(self, gate: Gate) -> None:
        """A look-up never makes one."""
        answer = await gate.get("/engines/nobody")

        assert (answer.status_code, code(answer)) == (404, "ENGINE_NOT_FOUND")

    @pytest.mark.parametrize("state", STATES)
    async def test_every_state_can_be_seen(self, gate: Gate, state: str) -> None:
        """Look-up, list and status agree on the state, in all six."""
        await reach(gate, state)

        assert (await gate.get("/engines/ann")).json()["status"] == state
        assert (await gate.get(f"/engines?status={state}")).json()["total"] == 1
        assert (await gate.get("/status")).json()["by_status"][state] == 1

    async def test_url_and_key_stay_while_it_sleeps(self, gate: Gate) -> None:
        """They may be set while the engine is not up: the status says so."""
        before = await gate.engine()
        await gate.post("/engines/ann/sleep")

        assert (await gate.get("/engines/ann")).json() == before | {"status": "sleeping"}

    async def test_last_health_is_null_before_the_first_good_probe(self, gate: Gate) -> None:
        """An engine that was never well does not claim to have been."""
        await reach(gate, "provisioning")

        assert (await gate.get("/engines/ann")).json()["last_health_at"] is None

    async def test_the_list_leaves_the_key_out(self, gate: Gate) -> None:
        """A list is read by more eyes than a look-up."""
        engine = await gate.engine()
        del engine["api_key"]

        assert (await gate.get("/engines")).json() == {"engines": [engine], "total": 1}

    async def test_the_list_is_ordered_by_creation_then_id(self, gate: Gate) -> None:
        """Pages do not move while nothing is created; `total` counts beyond the page."""
        for user_id in ("b", "c"):
            await gate.engine(user_id)
        await gate.clock.advance(1)
        await gate.engine("a")
        whole = (await gate.get("/engines")).json()

        order = [(one["created_at"], one["engine_id"]) for one in whole["engines"]]
        assert order == sorted(order)
        assert whole["engines"][-1]["user_id"] == "a"
        page = (await gate.get("/engines?limit=1&offset=1")).json()
        assert page == {"engines": whole["engines"][1:2], "total": 3}
        assert (await gate.get("/engines?offset=3")).json() == {"engines": [], "total": 3}

    async def test_total_counts_what_the_filter_matches(self, gate: Gate) -> None:
        """The total is that of the question, not of the fleet."""
        await gate.engine("ann")
        await gate.engine("bob")
        await gate.post("/engines/bob/stop")

        answer = (await gate.get("/engines?status=stopped&limit=1")).json()
        assert [one["user_id"] for one in answer["engines"]] == ["bob"]
        assert answer["total"] == 1

    @pytest.mark.parametrize(
        "query",
        [
            *("limit=0", "limit=1001", "limit=x", "limit=", "limit=1.5", "limit=1&limit=2"),
            *("limit=1_0", "limit=%201", "limit=9999999999999999999999", "limit=true"),
            *("offset=-1", "offset=x", "offset=1e3", "status=gone", "status=", "status=RUNNING"),
        ],
    )
    async def test_a_wrong_parameter_is_refused(self, gate: Gate, query: str) -> None:
        """A list that is not the one asked for would be worse than none."""
        answer = await gate.get(f"/engines?{query}")

        assert (answer.status_code, code(answer)) == (400, "INVALID_REQUEST")
        assert query.split("=", maxsplit=1)[0] in answer.json()["error"]["message"]

    async def test_the_limits_of_the_list_are_allowed(self, gate: Gate) -> None:
        """1 and 1000 are inside."""
        for limit in (1, 1000):
            assert (await gate.get(f"/engines?limit={limit}")).status_code == 200


class TestSection22Provision:
    """Create a user's engine; the answer comes when it is running."""

    async def test_the_answer_has_five_fields(self, gate: Gate) -> None:
        """What a product needs to call the engine at once."""
        answer = await gate.post("/engines/provision", {"user_id": "ann"})

        assert answer.status_code == 200
        assert set(answer.json()) == {"engine_id", "user_id", "status", "url", "api_key"}
        assert answer.json()["status"] == "running"
        assert gate.fake().alive

    async def test_a_second_engine_of_the_user_is_refused_at_once(self, gate: Gate) -> None:
        """Also while the first one boots; the answer names it and its state."""
        await reach(gate, "provisioning")
        answer = await gate.post("/engines/provision", {"user_id": "ann"})

        assert (answer.status_code, code(answer)) == (409, "ENGINE_ALREADY_EXISTS")
        error = answer.json()["error"]
        assert error["engine_id"] == gate.live().engine.engine_id
        assert error["status"] == "provisioning"

    async def test_two_callers_at_once_make_one_engine(self, gate: Gate) -> None:
        """One is answered with the engine, the other with 409."""
        body = {"user_id": "ann"}
        answers = await asyncio.gather(*(gate.post("/engines/provision", body) for _ in range(5)))

        assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409, 409]
        assert len(gate.backend.world.engines) == 1

    @pytest.mark.parametrize(
        "user_id",
        ["", ".a", "-a", "a b", "a/b", "ä", "a" * 129, "a\n", "a\x00", "a%2f", "a?b", "a#b"],
    )
    async def test_a_wrong_user_id_is_refused(self, gate: Gate, user_id: str) -> None:
        """User ids come from the outside and end up in paths and logs."""
        answer = await gate.post("/engines/provision", {"user_id": user_id})

        assert (answer.status_code, code(answer)) == (400, "INVALID_REQUEST")
        assert "user_id" in answer.json()["error"]["message"]

    async def test_the_longest_user_id_is_allowed(self, gate: Gate) -> None:
        """128 characters are inside."""
        assert (await gate.engine("a" * 128))["user_id"] == "a" * 128

    async def test_only_configured_versions_are_allowed(self, open_gate: OpenGate) -> None:
        """`image` and `allowed_images` may be asked for, nothing else."""
        engine = EngineSettings(image="app:1", allowed_images=("app:2", "lab:*"))
        async with open_gate(engine=engine) as gate:
            body: dict[str, Any] = {"user_id": "ann", "engine_version": "evil:1"}
            answer = await gate.post("/engines/provision", body)
            assert (answer.status_code, code(answer)) == (403, "POLICY_DENIED")

            for user_id, version in (("a", "app:1"), ("b", "app:2"), ("c", "lab:9")):
                body = {"user_id": user_id, "engine_version": version}
                assert (await gate.post("/engines/provision", body)).status_code == 200
                found = await gate.get(f"/engines/{user_id}")
                assert found.json()["engine_version"] == version

    @pytest.mark.parametrize("version", [1, True, None, [], {}])
    async def test_a_version_is_a_string(self, gate: Gate, version: Any) -> None:
        """Any other type is a malformed request."""
        body = {"user_id": "ann", "engine_version": version}

        assert code(await gate.post("/engines/provision", body)) == "INVALID_REQUEST"

    async def test_checks_come_in_their_order(self, open_gate: OpenGate) -> None:
        """Authentication, body, existence, policy, quota, port: the first fault is told."""
        async with open_gate(ports=Ports(min=9001, max=9001)) as gate:
            await gate.engine()
            await gate.policy(max_engines=1)
            bad = {"user_id": "bob", "engine_version": "evil"}

            assert code(await gate.post("/engines/provision", {}, key="x")) == (
                "INVALID_PLATFORM_KEY"
            )
            assert code(await gate.post("/engines/provision", bad | {"x": 1})) == "INVALID_REQUEST"
            taken = bad | {"user_id": "ann"}
            assert code(await gate.post("/engines/provision", taken)) == "ENGINE_ALREADY_EXISTS"
            assert code(await gate.post("/engines/provision", bad)) == "POLICY_DENIED"
            bob = {"user_id": "bob"}
            assert code(await gate.post("/engines/provision", bob)) == "QUOTA_EXCEEDED"
            await gate.policy()
            assert code(await gate.post("/engines/provision", bob)) == "PORT_EXHAUSTION"

    async def test_a_failed_boot_leaves_a_failed_engine(self, gate: Gate) -> None:
        """It is there to be looked at, its restart is planned, its log is in the trail."""
        gate.backend.fail("start")
        answer = await gate.post("/engines/provision", {"user_id": "ann"})

        assert (answer.status_code, code(answer)) == (502, "BACKEND_ERROR")
        assert (await gate.get("/engines/ann")).json()["status"] == "failed"
        assert (await refused(gate))["reason"] == "engine_restarting"
        entry = (await gate.audit(action="provision"))[0]
        assert entry["outcome"] == "failed"
        assert "log" in entry["metadata"]

    async def test_a_caller_who_leaves_does_not_cancel_the_boot(self, gate: Gate) -> None:
        """The work belongs to enginegate, not to a connection."""
        hang = gate.backend.hang("start")
        call = gate.spawn(gate.post("/engines/provision", {"user_id": "ann"}))
        await hang.reached.wait()
        call.cancel()
        hang.release()

        assert (await admitted(gate))["engine"]["status"] == "running"


class TestSection23Admit:
    """May this user's request go on, and where to?"""

    async def test_a_running_engine_is_admitted(self, gate: Gate) -> None:
        """The answer has the engine and how long it stays awake."""
        engine = await gate.engine()

        assert await admitted(gate) == {
            "admitted": True,
            "engine": engine,
            "action": "none",
            "waited_ms": 0,
            "lease_s": 900,
        }

    @pytest.mark.parametrize(
        ("state", "reason", "again"),
        [
            ("sleeping", "engine_sleeping", False),
            ("stopped", "engine_stopped", False),
            ("failed", "engine_restarting", True),
            ("provisioning", "engine_provisioning", True),
            ("destroying", "engine_destroying", True),
        ],
    )
    async def test_each_state_has_its_reason(
        self, gate: Gate, state: str, reason: str, *, again: bool
    ) -> None:
        """Not admitted is an answer, not an error; it says when asking again makes sense."""
        await reach(gate, state)
        answer = await refused(gate, wait_s=0)

        assert answer["reason"] == reason
        assert (answer["retry_after_s"] is not None) == again

    async def test_no_engine_has_a_reason_too(self, gate: Gate) -> None:
        """Without `auto_provision` nothing is made."""
        assert await refused(gate) == {
            "admitted": False,
            "engine": None,
            "reason": "engine_not_found",
            "retry_after_s": None,
        }
        assert not gate.backend.world.engines

    async def test_an_engine_that_was_given_up_is_unhealthy(self, gate: Gate) -> None:
        """No restart is planned, so waiting does not help."""
        gate.backend.fail("start", times=None)
        await gate.post("/engines/provision", {"user_id": "ann"})
        for _ in range(gate.config.restart.max_attempts):
            await gate.clock.advance(gate.config.restart.backoff_max_s)
            gate.health.begin_due_restarts()
            operation = gate.live().operation
            assert operation is not None
            await gate.settled(gate.spawn(operation.settled()))

        answer = await refused(gate)
        assert (answer["reason"], answer["retry_after_s"]) == ("engine_unhealthy", None)

    async def test_a_waking_engine_is_told_to_who_does_not_wait(self, gate: Gate) -> None:
        """The work goes on either way; the next call finds it done."""
        await reach(gate, "sleeping")
        hang = gate.backend.hang("unpause")

        assert (await refused(gate, auto_wake=True, wait_s=0))["reason"] == "engine_waking"
        hang.release()
        assert (await admitted(gate))["action"] in {"none", "woke"}

    async def test_auto_provision_makes_the_engine(self, gate: Gate) -> None:
        """The caller waits for the boot and is told that there was one."""
        answer = await admitted(gate, auto_provision=True)

        assert answer["action"] == "provisioned"
        assert answer["engine"]["status"] == "running"

    async def test_any_number_of_admits_make_one_engine(self, gate: Gate) -> None:
        """All callers get the same engine."""
        answers = await asyncio.gather(*(admitted(gate, auto_provision=True) for _ in range(20)))

        assert len({answer["engine"]["engine_id"] for answer in answers}) == 1
        assert gate.backend.count("start") == 1

    async def test_auto_wake_wakes(self, gate: Gate) -> None:
        """Who asks for it gets a sleeping engine awake."""
        await reach(gate, "sleeping")

        assert (await admitted(gate, auto_wake=True))["action"] == "woke"
        assert (await gate.get("/engines/ann")).json()["status"] == "running"

    async def test_auto_wake_does_not_override_a_stop(self, gate: Gate) -> None:
        """Who stopped it meant it."""
        await reach(gate, "stopped")

        assert (await refused(gate, auto_wake=True, auto_provision=True))["reason"] == (
            "engine_stopped"
        )

    async def test_a_boot_at_work_is_joined_whatever_the_flags(self, gate: Gate) -> None:
        """The first admit after a provision waits with it."""
        hang = gate.backend.hang("start")
        gate.spawn(gate.post("/engines/provision", {"user_id": "ann"}))
        await hang.reached.wait()
        joined = gate.spawn(admitted(gate))
        await gate.clock.advance(2)
        hang.release()
        answer = await gate.settled(joined)

        assert answer["action"] == "provisioned"
        assert answer["waited_ms"] > 0

    async def test_a_stricter_lease_of_the_product_is_told(self, gate: Gate) -> None:
        """`idle_sleep_s` of the policy overrides the configuration, fractions kept."""
        await gate.engine()
        await gate.policy(idle_sleep_s=12.5)
        assert (await admitted(gate))["lease_s"] == 12.5
        await gate.policy(idle_sleep_s=0)
        assert (await admitted(gate))["lease_s"] == 0

    async def test_an_admit_moves_the_lease_and_a_dry_one_does_not(self, gate: Gate) -> None:
        """`touch: false` asks without keeping anything awake."""
        await gate.engine()
        await gate.clock.advance(100)
        assert (await admitted(gate, touch=False))["lease_s"] == 800
        assert (await admitted(gate))["lease_s"] == 900

    async def test_monitoring_keeps_nothing_awake(self, gate: Gate) -> None:
        """Looking is not using."""
        await gate.engine()
        await gate.clock.advance(100)
        for path in ("/engines", "/engines/ann", "/engines/ann/activity", "/status", "/metrics"):
            await gate.get(path)
        await gate.policy(rate_limit_rpm=0)
        assert (await gate.admit()).status_code == 429

        await gate.policy()
        assert (await admitted(gate, touch=False))["lease_s"] == 800

    async def test_verify_asks_the_engine(self, gate: Gate) -> None:
        """A dead process is found out before the user is sent there."""
        await gate.engine()
        assert (await admitted(gate, verify=True))["action"] == "none"
        gate.backend.crash(gate.live().engine.engine_id, tell=False)

        answer = await refused(gate, verify=True)
        assert answer["reason"] in {"engine_restarting", "engine_unhealthy"}
        assert (await gate.get("/engines/ann")).json()["status"] == "failed"

    async def test_the_products_limit_comes_first_then_the_users(self, gate: Gate) -> None:
        """Refused calls do not count, and the wait is told twice: rounded up and exact."""
        await gate.engine("ann")
        await gate.engine("bob")
        await gate.policy(rate_limit_rpm=3, user_rate_limit_rpm=2)
        for _ in range(2):
            await admitted(gate)
        limited = await gate.admit()
        assert (limited.status_code, code(limited)) == (429, "RATE_LIMITED")
        exact_s = limited.json()["error"]["retry_after_s"]
        assert 0 < exact_s <= 60
        assert exact_s <= int(limited.headers["retry-after"]) < exact_s + 1
        await admitted(gate, "bob")
        assert (await gate.admit("bob")).status_code == 429

    async def test_a_limit_of_zero_refuses_all(self, gate: Gate) -> None:
        """There is no time to wait for, so none is told."""
        await gate.engine()
        await gate.policy(rate_limit_rpm=0)
        answer = await gate.admit()

        assert (answer.status_code, code(answer)) == (429, "RATE_LIMITED")
        assert answer.json()["error"]["retry_after_s"] is None
        assert "retry-after" not in answer.headers

    async def test_a_running_engine_is_admitted_through_every_outage(self, gate: Gate) -> None:
        """Neither a missing backend nor a broken disk stops what runs."""
        await gate.engine()
        gate.backend.down = True
        gate.journal.fail("told to")
        gate.operations.closed = True

        assert (await admitted(gate))["action"] == "none"
        assert (await admitted(gate, touch=False))["action"] == "none"

    async def test_a_refusal_is_answered_while_the_disk_is_broken(self, gate: Gate) -> None:
        """That its audit entry is lost is no reason to answer an error."""
        gate.journal.fail("told to")

        assert (await refused(gate))["reason"] == "engine_not_found"

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("auto_provision", 1),
            ("auto_wake", "true"),
            ("touch", 0),
            ("verify", None),
            ("wait_s", -1),
            ("wait_s", True),
            ("wait_s", "1"),
            ("user_id", "ann"),
        ],
    )
    async def test_a_wrong_option_is_refused(self, gate: Gate, field: str, value: Any) -> None:
        """A flag that is misunderstood in silence wakes or makes engines nobody wanted."""
        await gate.engine()
        answer = (
            await gate.admit(**{field: value})
            if field != "user_id"
            else (await gate.post("/engines/ann/admit", {field: value}))
        )

        assert (answer.status_code, code(answer)) == (400, "INVALID_REQUEST")
        assert field in answer.json()["error"]["message"]


class TestSection23Waiting:
    """How long an admit waits, for what, and what it is told if it does not."""

    async def test_who_does_not_wait_for_a_boot_is_told_when_to_ask(self, gate: Gate) -> None:
        """`wait_s: 0` answers the state now; the boot that this very call began goes on."""
        hang = gate.backend.hang("start")
        answer = await refused(gate, auto_provision=True, wait_s=0)

        assert answer["reason"] == "engine_provisioning"
        assert answer["retry_after_s"] > 0
        hang.release()
        assert (await admitted(gate))["engine"]["status"] == "running"
        assert gate.backend.count("start") == 1

    async def test_who_waits_for_a_while_waits_for_that_while(self, gate: Gate) -> None:
        """`wait_s` is an upper bound; the work goes on after it."""
        hang = gate.backend.hang("start")
        began = time.monotonic()
        answer = await refused(gate, auto_provision=True, wait_s=0.05)

        assert answer["reason"] == "engine_provisioning"
        assert 0.05 <= time.monotonic() - began < PATIENCE_S
        hang.release()
        assert (await admitted(gate, wait_s=60))["action"] in {"none", "provisioned"}

    @pytest.mark.parametrize(
        ("work", "reason", "action"),
        [
            ("wake", "engine_waking", "woke"),
            ("start", "engine_waking", "started"),
            ("rotate-key", "engine_waking", "none"),
            ("restart", "engine_restarting", None),
            ("stop", "engine_stopped", None),
        ],
    )
    async def test_work_under_way_is_joined_whatever_the_flags(
        self, gate: Gate, work: str, reason: str, action: str | None
    ) -> None:
        """Who waits gets its outcome as `action`; who does not hears what is going on."""
        hang, _ = await begin(gate, work)
        told = await refused(gate, wait_s=0)
        assert told["reason"] == reason
        assert (told["retry_after_s"] is None) == (reason == "engine_stopped")
        if action is None:
            assert (await refused(gate))["reason"] == reason
            return
        joined = gate.spawn(admitted(gate))
        await gate.clock.advance(2)
        assert not joined.done()
        hang.release()
        answer = await gate.settled(joined)

        assert answer["action"] == action
        assert answer["waited_ms"] >= 2000
        assert answer["engine"] == (await gate.get("/engines/ann")).json()

    async def test_a_sleep_under_way_is_told_as_what_it_leads_to(self, gate: Gate) -> None:
        """Who asked for no wake hears `engine_sleeping`, also without waiting for the freeze."""
        await begin(gate, "sleep")

        assert (await refused(gate, wait_s=0, touch=False))["reason"] == "engine_sleeping"
        assert (await refused(gate, wait_s=0, auto_wake=True))["reason"] == "engine_waking"

    async def test_a_joined_rotation_gives_the_new_key(self, gate: Gate) -> None:
        """Nobody is sent to an engine with a key that it does not know."""
        before = await gate.engine()
        hang = gate.backend.hang("start")
        rotating = gate.spawn(gate.post("/engines/ann/rotate-key"))
        await hang.reached.wait()
        joined = gate.spawn(admitted(gate))
        hang.release()

        key = (await rotating).json()["api_key"]
        assert (await joined)["engine"]["api_key"] == key != before["api_key"]

    async def test_destroy_overtakes_and_the_waiters_are_told(self, gate: Gate) -> None:
        """Of a boot, a wake and a rotation alike."""
        for work in ("provision", "wake", "rotate-key"):
            if work == "provision":
                hang = gate.backend.hang("start")
                gate.spawn(gate.admit(auto_provision=True))
                await hang.reached.wait()
            else:
                await begin(gate, work)
            waiters = [gate.spawn(refused(gate)) for _ in range(3)]
            await gate.durable()
            assert (await gate.call("DELETE", "/engines/ann")).status_code == 200
            for waiter in waiters:
                answer = await waiter
                assert answer["reason"] == "engine_destroying", work
                assert answer["retry_after_s"] > 0

    async def test_verify_takes_a_second_at_most(self, gate: Gate) -> None:
        """One probe; an engine that is slow to answer is not admitted by such a call."""
        await gate.engine()
        gate.fake().probe_delay_s = 30
        call = gate.spawn(refused(gate, verify=True))
        await gate.clock.advance(0.9)
        assert not call.done()
        await gate.clock.advance(0.1)

        assert (await call)["reason"] == "engine_unhealthy"

    async def test_a_failed_verify_is_told_to_the_health_machinery(self, gate: Gate) -> None:
        """It counts like a failed probe; at the threshold the engine fails."""
        await gate.engine()
        gate.fake().healthy = False
        for _ in range(gate.config.health.max_failures - 1):
            answer = await refused(gate, verify=True)
            assert (answer["reason"], answer["retry_after_s"]) == ("engine_unhealthy", None)
        assert (await gate.get("/status")).json()["unhealthy_count"] == 1
        answer = await refused(gate, verify=True)

        assert answer["reason"] == "engine_restarting"
        assert answer["retry_after_s"] > 0
        assert await state_of(gate) == "failed"

    async def test_simultaneous_admits_wake_once(self, gate: Gate) -> None:
        """All callers get the engine awake, out of one thaw."""
        await reach(gate, "sleeping")
        answers = await asyncio.gather(*(admitted(gate, auto_wake=True) for _ in range(20)))

        assert {answer["action"] for answer in answers} == {"woke"}
        assert gate.backend.count("unpause") == 1

    @pytest.mark.parametrize(
        ("expected", "status"),
        [
            ("QUOTA_EXCEEDED", 429),
            ("PORT_EXHAUSTION", 503),
            ("BACKEND_ERROR", 502),
            ("BACKEND_UNAVAILABLE", 503),
            ("STORAGE_UNAVAILABLE", 503),
            ("SHUTTING_DOWN", 503),
        ],
    )
    async def test_what_hinders_a_provision_is_an_error_only_where_one_was_tried(
        self, open_gate: OpenGate, expected: str, status: int
    ) -> None:
        """The same admit without `auto_provision` is an answer."""
        async with open_gate(ports=Ports(min=9001, max=9001)) as gate:
            await gate.policy(max_engines=0 if expected == "QUOTA_EXCEEDED" else None)
            match expected:
                case "PORT_EXHAUSTION":
                    await gate.engine("bob")
                case "BACKEND_ERROR":
                    gate.backend.fail("start")
                case "BACKEND_UNAVAILABLE":
                    gate.backend.down = True
                case "STORAGE_UNAVAILABLE":
                    gate.journal.fail("told to")
                case "SHUTTING_DOWN":
                    gate.operations.closed = True
            assert (await refused(gate))["reason"] == "engine_not_found"
            answer = await gate.admit(auto_provision=True)

            assert (answer.status_code, code(answer)) == (status, expected)

    async def test_a_boot_that_is_late_is_504_for_all_who_waited(self, gate: Gate) -> None:
        """BOOT_TIMEOUT, and afterwards the engine is `failed` with a restart planned."""
        gate.backend.boot_s = 1e9
        calls = [gate.spawn(gate.admit(auto_provision=True)) for _ in range(5)]
        answers = [await gate.settled(call) for call in calls]

        assert {(one.status_code, code(one)) for one in answers} == {(504, "BOOT_TIMEOUT")}
        assert (await refused(gate))["reason"] == "engine_restarting"


class TestSection23RateLimits:
    """An exact sliding window of 60 s, first of the product, then of the user."""

    @pytest.fixture(autouse=True)
    def _windows_go_by_the_clock_of_the_test(
        self, gate: Gate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(admission, "monotonic_ns", lambda: round(gate.clock.now() * 1e9))

    async def limited(self, gate: Gate, user_id: str = "ann") -> float:
        """Return how long a refused call is told to wait (s)."""
        answer = await gate.admit(user_id)
        assert (answer.status_code, code(answer)) == (429, "RATE_LIMITED")
        wait_s: float = answer.json()["error"]["retry_after_s"]
        return wait_s

    async def test_who_waits_exactly_as_told_is_admitted(self, gate: Gate) -> None:
        """Not a moment earlier, and refused calls cost nothing."""
        await gate.engine()
        await gate.policy(rate_limit_rpm=3)
        for _ in range(3):
            await admitted(gate)
            await gate.clock.advance(10)
        assert await self.limited(gate) == 30
        await gate.clock.advance(29.5)
        for _ in range(5):
            assert await self.limited(gate) == 0.5
        await gate.clock.advance(0.5)

        await admitted(gate)
        assert await self.limited(gate) == 10

    async def test_whole_seconds_are_rounded_up(self, gate: Gate) -> None:
        """`Retry-After` takes no fractions, and less than was told would be too little."""
        await gate.engine()
        await gate.policy(rate_limit_rpm=1)
        await admitted(gate)
        await gate.clock.advance(17.75)
        answer = await gate.admit()

        assert answer.json()["error"]["retry_after_s"] == 42.25
        assert answer.headers["retry-after"] == "43"

    async def test_a_changed_limit_keeps_the_calls_already_in(self, gate: Gate) -> None:
        """Lowered, the calls of the last minute are over it; raised, they still count."""
        await gate.engine()
        await gate.policy(rate_limit_rpm=5)
        for _ in range(3):
            await admitted(gate)
        await gate.policy(rate_limit_rpm=2)
        assert await self.limited(gate) == 60
        await gate.policy(rate_limit_rpm=4)
        await admitted(gate)
        assert await self.limited(gate) == 60

    async def test_a_user_over_the_own_limit_costs_the_product_nothing(self, gate: Gate) -> None:
        """The product's window is asked first, and counts only calls that both let through."""
        await gate.engine("ann")
        await gate.engine("bob")
        await gate.policy(rate_limit_rpm=3, user_rate_limit_rpm=1)
        await admitted(gate, "ann")
        for _ in range(5):
            assert await self.limited(gate, "ann") == 60
        await admitted(gate, "bob")
        await admitted(gate, "carl", auto_provision=True)
        assert await self.limited(gate, "dora") == 60

    async def test_a_new_engine_is_no_new_allowance(self, gate: Gate) -> None:
        """The window belongs to the user, not to the engine that was destroyed."""
        await gate.engine()
        await gate.policy(user_rate_limit_rpm=1)
        await admitted(gate)
        await gate.call("DELETE", "/engines/ann")
        await gate.engine()

        assert await self.limited(gate) == 60

    async def test_windows_start_empty_after_a_restart(
        self, gate: Gate, open_gate: OpenGate
    ) -> None:
        """What was counted is forgotten with the process."""
        await gate.engine()
        await gate.policy(rate_limit_rpm=1, user_rate_limit_rpm=1)
        await admitted(gate)
        await self.limited(gate)
        await gate.close()
        async with open_gate(after=gate) as again:
            await admitted(again)
            await self.limited(again)


class TestSection23Lease:
    """Who keeps an engine awake, and when it sleeps."""

    @pytest.mark.parametrize("lease_s", [4.0, 40.0])
    async def test_a_quiet_engine_sleeps_soon_after_its_lease(
        self, gate: Gate, lease_s: float
    ) -> None:
        """Not before the end of it, and within max(1 s, 10 %) after."""
        gate.run_loops()
        await gate.policy(idle_sleep_s=lease_s)
        await gate.engine()
        assert (await admitted(gate))["lease_s"] == lease_s
        await gate.pass_time(lease_s - 0.25)
        assert await state_of(gate) == "running"
        await gate.pass_time(0.25 + max(1, lease_s / 10))

        assert await state_of(gate) == "sleeping"
        assert (await gate.audit(action="sleep"))[0]["metadata"]["reason"] == "idle"

    async def test_what_does_not_keep_an_engine_awake(self, gate: Gate) -> None:
        """Denied, dry and monitoring calls of every kind leave the lease as it is."""
        await gate.engine()
        await gate.clock.advance(100)

        async def left_s() -> float:
            lease_s: float = (await gate.get("/engines/ann/activity")).json()["lease_s"]
            return lease_s

        for path in ("/engines", "/engines/ann", "/engines/ann/activity", "/status", "/metrics"):
            await gate.get(path)
        for path in ("/status", "/metrics", "/audit", "/products"):
            await gate.admin("GET", path)
        assert await left_s() == 800
        await admitted(gate, touch=False)
        await admitted(gate, touch=False, verify=True)
        assert await left_s() == 800
        await gate.policy(rate_limit_rpm=0)
        assert (await gate.admit()).status_code == 429
        assert await left_s() == 800
        await gate.policy()
        gate.fake().healthy = False
        await refused(gate, verify=True)
        assert await left_s() == 800
        hang = gate.backend.hang("start")
        gate.spawn(gate.post("/engines/ann/rotate-key"))
        await hang.reached.wait()
        await refused(gate, wait_s=0)
        assert await left_s() == 800

    async def test_a_full_lease_after_a_restart(self, open_gate: OpenGate) -> None:
        """Nobody is put to sleep for the time in which nobody could be admitted."""
        async with open_gate() as before:
            await before.engine()
            await before.clock.advance(890)
        async with open_gate(after=before) as gate:
            assert (await admitted(gate, touch=False))["lease_s"] == 900

    @pytest.mark.parametrize("veto", ["busy", "connections"])
    async def test_a_veto_moves_the_deadline_by_a_lease_at_most(
        self, gate: Gate, veto: str
    ) -> None:
        """An engine in use is not put to sleep; once it is quiet it soon is."""
        gate.run_loops()
        await gate.policy(idle_sleep_s=20)
        await gate.engine()
        if veto == "busy":
            gate.fake().busy = True
        else:
            gate.fake().connections = [Connection(quiet_s=1.0)]
        await gate.pass_time(61)
        seen = (await gate.get("/engines/ann/activity")).json()
        assert seen["status"] == "running"
        assert 0 < seen["lease_s"] <= 20
        assert seen["vetoes"][-1]["kind"] == veto
        gate.fake().busy, gate.fake().connections = False, []
        await gate.pass_time(22)

        assert await state_of(gate) == "sleeping"

    @pytest.mark.parametrize(
        ("options", "ends"),
        [
            ({}, "running"),
            ({"wait_s": 60}, "running"),
            ({"wait_s": 0}, "sleeping"),
            ({"touch": False}, "sleeping"),
        ],
    )
    async def test_a_freeze_turns_back_for_who_uses_the_engine(
        self, gate: Gate, options: dict[str, Any], ends: str
    ) -> None:
        """An admit that waits is admitted; one that is denied or dry changes nothing."""
        gate.run_loops()
        await gate.policy(idle_sleep_s=10)
        await gate.engine()
        hang = gate.backend.hang("pause")
        await gate.pass_time(10.5)
        await hang.reached.wait()
        call = gate.spawn(gate.admit(**options))
        await gate.durable()
        hang.release()
        answer = (await call).json()
        await gate.durable()

        assert answer["admitted"] == (ends == "running")
        assert await state_of(gate) == ends

    async def test_a_connection_that_moves_nothing_no_longer_counts(
        self, open_gate: OpenGate
    ) -> None:
        """A pooled or half-open one cannot keep an engine awake for ever."""
        async with open_gate(idle=Idle(sleep_after_s=20, connection_idle_s=300)) as gate:
            gate.run_loops()
            await gate.engine()
            gate.fake().connections = [Connection(quiet_s=299.0)]
            await gate.pass_time(30)
            assert await state_of(gate) == "running"
            gate.fake().connections = [Connection(quiet_s=300.0)]
            await gate.pass_time(10)

            assert await state_of(gate) == "sleeping"

    async def test_an_exit_is_noticed_without_probes(self, gate: Gate) -> None:
        """No time passes between the process's end and the state that says so."""
        gate.run_loops()
        await gate.engine()
        gate.backend.crash(gate.live().engine.engine_id)
        await gate.durable()

        assert (await refused(gate))["reason"] == "engine_restarting"
        entry = (await gate.audit(action="health_failed"))[0]
        assert entry["metadata"]["reason"] == "exited"


class TestSection24Verbs:
    """Start, stop, sleep, rotate-key, touch, destroy."""

    @pytest.mark.parametrize("state", ["sleeping", "stopped", "failed"])
    async def test_start_brings_an_engine_back(self, gate: Gate, state: str) -> None:
        """From asleep, stopped and failed; the answer says where it is."""
        await reach(gate, state)
        answer = await gate.post("/engines/ann/start")

        assert answer.json() == {"status": "running", "url": "http://127.0.0.1:9001"}
        assert (await admitted(gate))["engine"]["status"] == "running"

    async def test_start_may_bring_another_version(self, open_gate: OpenGate) -> None:
        """That is the upgrade road: another allowed image on the same data."""
        engine = EngineSettings(image="app:1", allowed_images=("app:2",))
        async with open_gate(engine=engine) as gate:
            await reach(gate, "stopped")
            evil = await gate.post("/engines/ann/start", {"engine_version": "evil"})
            assert (evil.status_code, code(evil)) == (403, "POLICY_DENIED")
            await gate.post("/engines/ann/start", {"engine_version": "app:2"})

            assert (await gate.get("/engines/ann")).json()["engine_version"] == "app:2"
            assert gate.fake().spec.engine_version == "app:2"

    @pytest.mark.parametrize("state", ["running", "sleeping", "failed"])
    async def test_stop_stops(self, gate: Gate, state: str) -> None:
        """From running, sleeping and failed."""
        await reach(gate, state)

        assert (await gate.post("/engines/ann/stop")).json() == {"status": "stopped"}
        assert not gate.fake().alive

    async def test_sleep_freezes(self, gate: Gate) -> None:
        """A lease alone does not refuse it."""
        await gate.engine()

        assert (await gate.post("/engines/ann/sleep")).json() == {"status": "sleeping"}
        assert gate.fake().presence == "paused"

    @pytest.mark.parametrize("reason", ["busy", "connection"])
    async def test_sleep_of_an_engine_in_use_wants_force(self, gate: Gate, reason: str) -> None:
        """Its own word and an established connection refuse it; force overrides."""
        await gate.engine()
        if reason == "busy":
            gate.fake().busy = True
        else:
            gate.fake().connections = [Connection(quiet_s=0)]
        answer = await gate.post("/engines/ann/sleep")
        assert (answer.status_code, code(answer)) == (409, "ENGINE_BUSY")

        answer = await gate.post("/engines/ann/sleep", {"force": True})
        assert answer.json() == {"status": "sleeping"}

    async def test_rotate_key_gives_a_new_key(self, gate: Gate) -> None:
        """It is the one that look-up and admit show from then on."""
        engine = await gate.engine()
        answer = (await gate.post("/engines/ann/rotate-key")).json()

        assert set(answer) == {"engine_id", "api_key"}
        assert answer["engine_id"] == engine["engine_id"]
        assert answer["api_key"] != engine["api_key"]
        assert (await admitted(gate))["engine"]["api_key"] == answer["api_key"]

    async def test_a_failed_rotation_keeps_the_old_key(self, gate: Gate) -> None:
        """The answer is an error, the engine stays up."""
        engine = await gate.engine()
        gate.backend.fail("start")
        answer = await gate.post("/engines/ann/rotate-key")

        assert (answer.status_code, code(answer)) == (502, "BACKEND_ERROR")
        assert (await admitted(gate))["engine"]["api_key"] == engine["api_key"]

    async def test_touch_moves_the_lease(self, gate: Gate) -> None:
        """It keeps a running engine awake, and no rate limit stops it."""
        await gate.engine()
        await gate.policy(rate_limit_rpm=0)
        await gate.clock.advance(100)

        answer = await gate.post("/engines/ann/touch")
        assert answer.json() == {"status": "running", "lease_s": 900}
        activity = (await gate.get("/engines/ann/activity")).json()
        assert activity["lease_s"] == 900

    @pytest.mark.parametrize("state", STATES)
    async def test_destroy_works_in_every_state(self, gate: Gate, state: str) -> None:
        """Whatever is at work is overtaken; row and data are gone."""
        await reach(gate, state)
        engine_id = gate.live().engine.engine_id
        if state == "destroying":
            gate.backend._rules[-1].hang.release()  # type: ignore[union-attr]
        answer = await gate.call("DELETE", "/engines/ann")

        assert answer.json() == {"status": "destroyed", "engine_id": engine_id}
        assert (await gate.get("/engines/ann")).status_code == 404
        assert not gate.backend.world.volumes

    @pytest.mark.parametrize(
        ("verb", "state", "expected"),
        [
            ("start", "running", "ENGINE_ALREADY_RUNNING"),
            ("stop", "stopped", "ENGINE_NOT_RUNNING"),
            ("sleep", "sleeping", "ENGINE_NOT_RUNNING"),
            ("sleep", "stopped", "ENGINE_NOT_RUNNING"),
            ("sleep", "failed", "ENGINE_NOT_RUNNING"),
            ("rotate-key", "sleeping", "ENGINE_NOT_RUNNING"),
            ("rotate-key", "stopped", "ENGINE_NOT_RUNNING"),
            ("touch", "sleeping", "ENGINE_NOT_RUNNING"),
            ("touch", "stopped", "ENGINE_NOT_RUNNING"),
            ("touch", "failed", "ENGINE_NOT_RUNNING"),
        ],
    )
    async def test_a_verb_in_the_wrong_state_is_a_conflict(
        self, gate: Gate, verb: str, state: str, expected: str
    ) -> None:
        """The answer says which state stands in the way."""
        await reach(gate, state)
        answer = await gate.post(f"/engines/ann/{verb}")

        assert (answer.status_code, code(answer)) == (409, expected)
        assert answer.json()["error"]["status"] == state

    @pytest.mark.parametrize("verb", ["touch", "start", "stop", "sleep", "rotate-key"])
    async def test_a_verb_on_nothing_is_not_found(self, gate: Gate, verb: str) -> None:
        """No verb but provision makes an engine."""
        answer = await gate.post(f"/engines/nobody/{verb}")

        assert (answer.status_code, code(answer)) == (404, "ENGINE_NOT_FOUND")
        assert code(await gate.call("DELETE", "/engines/nobody")) == "ENGINE_NOT_FOUND"

    @pytest.mark.parametrize(
        ("verb", "state", "effect"),
        [("stop", "running", "stop"), ("start", "stopped", "start"), ("sleep", "running", "pause")],
    )
    async def test_two_callers_of_a_verb_share_its_result(
        self, gate: Gate, verb: str, state: str, effect: str
    ) -> None:
        """One works, the other waits and is told the same."""
        await reach(gate, state)
        before = gate.backend.count(effect)
        answers = await asyncio.gather(*(gate.post(f"/engines/ann/{verb}") for _ in range(3)))

        assert [answer.status_code for answer in answers] == [200] * 3
        assert len({answer.text for answer in answers}) == 1
        assert gate.backend.count(effect) == before + 1

    async def test_activity_tells_why_it_is_awake(self, gate: Gate) -> None:
        """Lease, planned sleep, vetoes and the last change in one place."""
        engine = await gate.engine()
        gate.fake().busy = True
        await gate.post("/engines/ann/sleep")
        answer = (await gate.get("/engines/ann/activity")).json()

        assert answer["engine_id"] == engine["engine_id"]
        assert (answer["status"], answer["lease_s"]) == ("running", 900)
        assert answer["planned_sleep_at"] == answer["lease_until"]
        assert TIME.fullmatch(answer["lease_until"])
        assert [veto["kind"] for veto in answer["vetoes"]] == ["busy"]
        assert TIME.fullmatch(answer["vetoes"][0]["at"])
        assert answer["last_transition"]["status"] == "running"

    async def test_activity_of_a_sleeper_has_no_lease(self, gate: Gate) -> None:
        """It tells why it sleeps instead."""
        await reach(gate, "sleeping")
        answer = (await gate.get("/engines/ann/activity")).json()

        assert (answer["lease_s"], answer["planned_sleep_at"]) == (None, None)
        assert answer["last_transition"]["reason"] == "request"

    async def test_activity_shows_what_was_seen_last(self, gate: Gate) -> None:
        """The last use, and of each kind of signal the newest, with value and time."""
        await gate.engine()
        await gate.clock.advance(100)
        await gate.admit(touch=False)
        await gate.post("/engines/ann/sleep")
        await gate.post("/engines/ann/start")
        await gate.clock.advance(50)
        gate.fake().connections = [Connection(1.0), Connection(2.0)]
        await gate.post("/engines/ann/sleep")
        answer = (await gate.get("/engines/ann/activity")).json()

        seen = {signal["kind"]: signal for signal in answer["signals"]}
        assert seen["lease"]["value"] == 900
        assert answer["lease_s"] == 850
        assert seen["connections"]["value"] == 2
        assert seen["busy"]["value"] is False
        assert seen["lease"]["at"] < seen["connections"]["at"]

    async def test_activity_tells_how_deep_it_sleeps(self, open_gate: OpenGate) -> None:
        """Frozen, and when it will be stopped; then stopped."""
        async with open_gate(idle=Idle(stop_after_s=100)) as gate:
            await gate.engine()
            running = (await gate.get("/engines/ann/activity")).json()
            assert (running["tier"], running["planned_stop_at"]) == (None, None)
            await gate.post("/engines/ann/sleep")
            frozen = (await gate.get("/engines/ann/activity")).json()
            assert frozen["tier"] == "frozen"
            assert TIME.fullmatch(frozen["planned_stop_at"])
            await gate.lifecycle.deepen(gate.live(), reason="stop_after")
            stopped = (await gate.get("/engines/ann/activity")).json()
            assert (stopped["tier"], stopped["planned_stop_at"]) == ("stopped", None)
            assert stopped["last_transition"] == frozen["last_transition"]

    async def test_activity_of_one_that_never_sleeps_plans_none(self, open_gate: OpenGate) -> None:
        """0 is "never", here as in an admit."""
        async with open_gate(idle=Idle(sleep_after_s=0)) as gate:
            await gate.engine()
            answer = (await gate.get("/engines/ann/activity")).json()

            assert (answer["lease_s"], answer["lease_until"]) == (0, None)


class TestSection24Concurrency:
    """Simultaneous callers of verbs on one engine."""

    @pytest.mark.parametrize(
        ("first", "second", "ends"),
        [
            ("stop", "start", "running"),
            ("sleep", "stop", "stopped"),
            ("rotate-key", "sleep", "sleeping"),
            ("start", "stop", "stopped"),
        ],
    )
    async def test_a_conflicting_verb_waits_its_turn(
        self, gate: Gate, first: str, second: str, ends: str
    ) -> None:
        """The second begins when the first is over, and both are answered as usual."""
        hang, call = await begin(gate, first)
        other = gate.spawn(gate.post(f"/engines/ann/{second}"))
        await gate.durable()
        assert not other.done()
        hang.release()

        assert call is not None
        assert (await call).status_code == 200
        assert (await other).status_code == 200
        assert await state_of(gate) == ends

    @pytest.mark.parametrize("work", ["start", "stop", "sleep", "rotate-key"])
    async def test_joiners_share_the_result(self, gate: Gate, work: str) -> None:
        """All get the very same answer, out of one piece of work."""
        hang, call = await begin(gate, work)
        others = [gate.spawn(gate.post(f"/engines/ann/{work}")) for _ in range(3)]
        await gate.durable()
        hang.release()

        assert call is not None
        answer = await call
        assert answer.status_code == 200
        assert {(await other).text for other in others} == {answer.text}
        action = work.replace("-", "_")
        assert len(await gate.audit(action=action)) == 1

    @pytest.mark.parametrize("work", ["start", "stop", "sleep", "rotate-key"])
    async def test_joiners_share_an_error_too(self, gate: Gate, work: str) -> None:
        """Nobody is told that it worked, and nobody tries a second time."""
        await reach(gate, AT_WORK[work][0])
        gate.backend.fail(AT_WORK[work][1], nth=1)
        answers = await asyncio.gather(*(gate.post(f"/engines/ann/{work}") for _ in range(3)))

        assert {(one.status_code, code(one)) for one in answers} == {(502, "BACKEND_ERROR")}
        assert len({one.text for one in answers}) == 1

    async def test_a_start_without_a_port_to_be_had_is_503(self, open_gate: OpenGate) -> None:
        """Its own port is held by another program, and there is no other."""
        async with open_gate(ports=Ports(min=9001, max=9001)) as gate:
            await reach(gate, "stopped")
            gate.backend.world.taken_ports.add(9001)
            answer = await gate.post("/engines/ann/start")

            assert (answer.status_code, code(answer)) == (503, "PORT_EXHAUSTION")
            assert {name: answer.json()["error"][name] for name in ("min", "max")} == {
                "min": 9001,
                "max": 9001,
            }

    @pytest.mark.parametrize("work", ["provision", "start", "stop", "sleep", "rotate-key", "touch"])
    async def test_no_backend_is_said_of_every_verb_that_needs_one(
        self, gate: Gate, work: str
    ) -> None:
        """503 BACKEND_UNAVAILABLE, and not for what needs none."""
        if work != "provision":
            await reach(gate, AT_WORK.get(work, ("running", ""))[0])
        gate.backend.down = True
        answer = await (
            gate.post("/engines/provision", {"user_id": "ann"})
            if work == "provision"
            else gate.post(f"/engines/ann/{work}")
        )

        if work == "touch":
            assert answer.status_code == 200
            return
        assert (answer.status_code, code(answer)) == (503, "BACKEND_UNAVAILABLE")
        failed = [one["action"] for one in await gate.audit(user_id="ann", actor="demo")]
        assert failed[0] == work.replace("-", "_")

    async def test_two_destroys_are_one(self, gate: Gate) -> None:
        """Both callers hear that it is gone."""
        made = await gate.engine()
        answers = await asyncio.gather(*(gate.call("DELETE", "/engines/ann") for _ in range(3)))

        expected = {"status": "destroyed", "engine_id": made["engine_id"]}
        assert [one.json() for one in answers] == [expected] * 3
        assert gate.backend.count("destroy") == 1

    @pytest.mark.parametrize(("verb", "state"), [("stop", "running"), ("sleep", "running")])
    async def test_a_backend_that_does_not_answer_costs_the_deadline_at_most(
        self, gate: Gate, monkeypatch: pytest.MonkeyPatch, verb: str, state: str
    ) -> None:
        """Then the caller is told so, the state is as before, and the failure is audited."""
        monkeypatch.setattr(stopping, "STOP_GRACE_S", 0.02)
        monkeypatch.setattr(stopping, "SLACK_S", 0.02)
        monkeypatch.setattr(sleeping, "PAUSE_S", 0.02)
        await begin(gate, verb)
        answer = await gate.post(f"/engines/ann/{verb}")  # joins the one that hangs

        assert (answer.status_code, code(answer)) == (503, "BACKEND_UNAVAILABLE")
        assert await state_of(gate) == state
        assert (await gate.audit(action=verb))[0]["outcome"] == "failed"

    async def test_deadlines_are_those_of_the_contract(self) -> None:
        """A stop is answered within 30 + 5 s, whatever the backend does."""
        assert (stopping.STOP_GRACE_S, stopping.SLACK_S) == (30, 5)


class TestSection25StatusMetricsAudit:
    """What an operator and a product may look at."""

    async def test_status_always_has_all_six_states(self, gate: Gate) -> None:
        """An empty fleet is healthy and says so in full."""
        assert (await gate.get("/status")).json() == {
            "total": 0,
            "by_status": dict.fromkeys(STATES, 0),
            "health": "ok",
            "unhealthy_count": 0,
        }

    async def test_health_of_the_fleet_goes_by_its_failed_engines(self, gate: Gate) -> None:
        """None is ok, some are degraded, 20 % or more are critical."""
        for number in range(6):
            await gate.engine(f"u{number}")
        assert (await gate.get("/status")).json()["health"] == "ok"
        await gate.fail("u0")
        status = (await gate.get("/status")).json()
        assert (status["health"], status["unhealthy_count"]) == ("degraded", 1)
        await gate.call("DELETE", "/engines/u1")
        assert (await gate.get("/status")).json()["health"] == "critical"

    async def test_an_engine_that_misses_probes_counts_as_unhealthy(self, gate: Gate) -> None:
        """The number shows trouble before anything has failed."""
        await gate.engine()
        gate.fake().healthy = False
        await gate.health.sweep()
        status = (await gate.get("/status")).json()

        assert (status["health"], status["unhealthy_count"]) == ("ok", 1)

    async def test_the_admin_sees_all_products_and_enginegate_itself(self, gate: Gate) -> None:
        """Backend, journal, pool, uptime and version come on top."""
        await gate.engine()
        await gate.engine(key=(await gate.product("other"))["platform_api_key"])
        await gate.clock.advance(5)
        status = (await gate.admin("GET", "/status")).json()

        assert status["total"] == 2
        assert [one["slug"] for one in status["products"]] == ["demo", "other"]
        assert [one["total"] for one in status["products"]] == [1, 1]
        assert (status["backend"], status["journal"]) == ("ok", "ok")
        assert status["pool"] == {"size": 0, "ready": 0, "booting": 0, "stalled": False}
        assert status["uptime_s"] == 5
        assert status["version"]

    async def test_metrics_count_what_happened(self, gate: Gate) -> None:
        """Totals, the last hour, and the admits of the last minute."""
        empty = (await gate.get("/metrics")).json()
        assert (empty["avg_boot_ms"], empty["avg_wake_ms"]) == (None, None)
        await gate.engine()
        await gate.post("/engines/ann/sleep")
        await refused(gate)
        await admitted(gate, auto_wake=True)
        await gate.fail()
        await gate.call("DELETE", "/engines/ann")
        found = (await gate.get("/metrics")).json()

        assert found == {
            "provisions_1h": 1,
            "crashes_1h": 1,
            "restarts_1h": 0,
            "avg_boot_ms": 0.0,
            "total_provisions": 1,
            "total_destroys": 1,
            "admits_1m": 1,
            "denials_1m": {"engine_sleeping": 1},
            "wakes_1h": 1,
            "sleeps_1h": 1,
            "avg_wake_ms": 0.0,
        }

    async def test_metrics_show_the_calling_product_alone(self, gate: Gate) -> None:
        """The admin sees the sum, products that are gone included."""
        other = await gate.product("other")
        await gate.engine(key=other["platform_api_key"])
        assert (await gate.get("/metrics")).json()["total_provisions"] == 0
        await gate.admin("DELETE", f"/products/{other['product_id']}")

        assert (await gate.admin("GET", "/metrics")).json()["total_provisions"] == 1

    async def test_an_audit_entry_has_its_ten_fields(self, gate: Gate) -> None:
        """Who did what to whom, when, how it ended and how long it took."""
        engine = await gate.engine()
        entry = (await gate.audit(action="provision"))[0]

        assert set(entry) == {
            "id",
            "timestamp",
            "product_id",
            "user_id",
            "engine_id",
            "action",
            "actor",
            "outcome",
            "metadata",
            "duration_ms",
        }
        assert entry["engine_id"] == engine["engine_id"]
        assert (entry["actor"], entry["outcome"]) == ("demo", "ok")
        assert TIME.fullmatch(entry["timestamp"])

    async def test_the_trail_is_newest_first_and_ids_only_grow(self, gate: Gate) -> None:
        """The order is that of what happened."""
        await gate.engine()
        await gate.post("/engines/ann/stop")
        entries = await gate.audit()

        assert [entry["action"] for entry in entries] == ["stop", "provision", "policy_register"]
        ids = [entry["id"] for entry in entries]
        assert ids == sorted(ids, reverse=True)

    async def test_pages_follow_one_another_by_cursor(self, gate: Gate) -> None:
        """Entries that come meanwhile neither repeat nor hide others."""
        for _ in range(3):
            await gate.policy()
        seen: list[int] = []
        cursor: str | None = ""
        while cursor is not None:
            query = "limit=2" + (f"&cursor={cursor}" if cursor else "")
            page = (await gate.admin("GET", f"/audit?{query}")).json()
            seen += [entry["id"] for entry in page["entries"]]
            cursor = page["next_cursor"]
            await gate.policy()
        assert len(seen) == 4
        assert seen == sorted(set(seen), reverse=True)

    async def test_the_trail_can_be_filtered(self, gate: Gate) -> None:
        """By user, engine, action and actor."""
        ann = await gate.engine("ann")
        await gate.engine("bob")

        assert len(await gate.audit(user_id="ann")) == 1
        assert len(await gate.audit(engine_id=ann["engine_id"])) == 1
        assert len(await gate.audit(action="provision")) == 2
        assert len(await gate.audit(actor="admin")) == 1
        assert await gate.audit(user_id="ann", action="stop") == []

    async def test_the_trail_can_be_cut_by_time(self, gate: Gate) -> None:
        """`since` and `until` include their own instant, in any zone."""
        await gate.clock.advance(10)
        await gate.engine()
        at = (await gate.audit(action="provision"))[0]["timestamp"]

        assert len(await gate.audit(since=at, until=at)) == 1
        assert await gate.audit(since=at.replace("Z", "1Z")) == []
        assert len(await gate.audit(since=at.replace("Z", "-00:00"))) == 1

    @pytest.mark.parametrize(
        "query",
        [
            *("since=yesterday", "until=1714220000", "since=2026-04-27", "since=", "limit=0"),
            *("limit=1001", "cursor=!", "cursor=", "until=2026-04-27T12:00:00"),
        ],
    )
    async def test_a_wrong_filter_is_refused(self, gate: Gate, query: str) -> None:
        """A wrong time must not look like an empty trail."""
        answer = await gate.get(f"/audit?{query}")

        assert (answer.status_code, code(answer)) == (400, "INVALID_REQUEST")

    async def test_a_product_sees_its_own_entries_alone(self, gate: Gate) -> None:
        """The admin may ask for one product by its slug."""
        await gate.engine(key=(await gate.product("other"))["platform_api_key"])
        own = (await gate.get("/audit")).json()["entries"]
        assert [entry["action"] for entry in own] == ["policy_register"]

        theirs = await gate.audit(product="other")
        assert [entry["action"] for entry in theirs] == ["provision", "policy_register"]
        unknown = await gate.admin("GET", "/audit?product=nobody")
        assert (unknown.status_code, code(unknown)) == (404, "PRODUCT_NOT_FOUND")
        assert code(await gate.get("/audit?product=other")) == "PRODUCT_NOT_FOUND"
        assert (await gate.get("/audit?product=demo")).json()["entries"] == own

    async def test_denied_admits_are_coalesced(self, gate: Gate) -> None:
        """At most one entry per product and reason in 10 s, with a count."""
        for _ in range(5):
            await refused(gate)
        await gate.clock.advance(10)
        gate.services.admission.denials.flush()
        entries = await gate.audit(action="admit_denied")

        assert [entry["outcome"] for entry in entries] == ["denied", "denied"]
        assert [entry["metadata"]["count"] for entry in entries] == [4, 1]

    async def test_refused_provisions_are_audited_coalesced(self, gate: Gate) -> None:
        """Failures are entries too, and one that is repeated a thousand times is one entry."""
        product_id = gate.registry.by_slug["demo"].product.product_id
        policy = {"policy": {"max_engines": 1}}
        await gate.admin("PUT", f"/products/{product_id}/policy", policy)
        await gate.engine()
        bob = {"user_id": "bob"}
        for _ in range(3):
            assert code(await gate.post("/engines/provision", bob)) == "QUOTA_EXCEEDED"
            await gate.post("/engines/bob/admit", {"auto_provision": True})
        other = await gate.post("/engines/provision", bob | {"engine_version": "other:1"})
        assert code(other) == "POLICY_DENIED"
        await gate.clock.advance(10)
        gate.services.admission.denials.flush()
        told = [
            (entry["action"], entry["metadata"]["reason"], entry["metadata"]["count"])
            for entry in await gate.audit(user_id="bob")
        ]

        assert sorted(told) == [
            ("admit_denied", "quota_exceeded", 1),
            ("admit_denied", "quota_exceeded", 2),
            ("provision", "policy_denied", 1),
            ("provision", "quota_exceeded", 1),
            ("provision", "quota_exceeded", 2),
        ]

    async def test_no_key_is_ever_in_the_trail(self, gate: Gate) -> None:
        """Neither the engine's nor the product's, old or new."""
        engine = await gate.engine()
        rotated = (await gate.post("/engines/ann/rotate-key")).json()
        await gate.registry.flushed()
        text = (await gate.client.get("/audit", headers=ADMIN)).text

        for key in (engine["api_key"], rotated["api_key"], gate.key):
            assert key not in text


ACTIONS = {
    *("provision", "start", "stop", "sleep", "wake", "destroy", "rotate_key", "health_check"),
    *("health_failed", "auto_restart_start", "auto_restart_success", "auto_restart_failed"),
    *("auto_restart_gave_up", "restarts_suspended", "policy_register", "policy_update"),
    *("product_delete", "rotate_platform_key", "admit_denied", "sleep_vetoed", "adopt"),
    *("orphan_removed", "recovered"),
}


class TestSection25Trail:
    """Which entry there is for what."""

    def test_actions_are_those_that_are_promised(self) -> None:
        """A filter for one of them is never in vain, and nothing else comes up."""
        assert ALL_ACTIONS == ACTIONS

    async def test_a_whole_life_is_in_the_trail(self, gate: Gate) -> None:
        """Each verb is one entry, by its caller, with how long it took."""
        await gate.engine()
        for verb in ("sleep", "start", "stop", "start", "rotate-key"):
            await gate.post(f"/engines/ann/{verb}")
        await gate.post("/engines/ann/sleep")
        await admitted(gate, auto_wake=True)
        await gate.call("DELETE", "/engines/ann")
        entries = (await gate.audit(user_id="ann"))[::-1]

        assert [entry["action"] for entry in entries] == [
            *("provision", "sleep", "start", "stop", "start", "rotate_key", "sleep", "wake"),
            "destroy",
        ]
        assert {(entry["actor"], entry["outcome"]) for entry in entries} == {("demo", "ok")}
        assert all(entry["duration_ms"] >= 0 for entry in entries)

    async def test_products_are_in_the_trail(self, gate: Gate) -> None:
        """What an operator does is the act of `admin`."""
        made = await gate.product("other")
        road = f"/products/{made['product_id']}"
        await gate.admin("PUT", f"{road}/policy", {"policy": {}})
        await gate.admin("POST", f"{road}/rotate-platform-key")
        await gate.admin("DELETE", road)
        entries = (await gate.audit())[:4]

        assert [entry["action"] for entry in entries] == [
            *("product_delete", "rotate_platform_key", "policy_update", "policy_register"),
        ]
        assert {entry["actor"] for entry in entries} == {"admin"}
        assert {entry["product_id"] for entry in entries} == {made["product_id"]}

    async def test_health_checks_are_noted_when_they_turn(self, gate: Gate) -> None:
        """From ok to failing and back, once each; the good probe after a boot is no entry."""
        await gate.engine()
        for healthy in (True, True, False, False, True, True):
            gate.fake().healthy = healthy
            await gate.health.sweep()
        entries = (await gate.audit(action="health_check"))[::-1]
        assert [entry["outcome"] for entry in entries] == ["failed", "ok"]

        gate.fake().healthy = False
        await gate.health.sweep()
        await gate.post("/engines/ann/stop")
        gate.fake().healthy = True
        await gate.post("/engines/ann/start")
        await gate.health.sweep()
        assert len(await gate.audit(action="health_check")) == 3

    async def test_a_restart_is_told_step_by_step(self, open_gate: OpenGate) -> None:
        """Failed, tried, failed again, tried again, and back; then given up."""
        async with open_gate(restart=Restart(max_attempts=2, backoff_max_s=10)) as gate:
            gate.run_loops()
            await gate.engine()
            gate.backend.fail("start")
            gate.backend.crash(gate.live().engine.engine_id)
            await gate.pass_time(35)  # ten seconds of health, and the count starts anew
            gate.backend.fail("start", times=None)
            gate.backend.crash(gate.live().engine.engine_id)
            await gate.pass_time(40)
            entries = (await gate.audit(user_id="ann", actor="system"))[::-1]

        assert [(entry["action"], entry["metadata"].get("attempt")) for entry in entries] == [
            ("health_failed", None),
            ("auto_restart_start", 1),
            ("auto_restart_failed", 1),
            ("auto_restart_start", 2),
            ("auto_restart_success", 2),
            ("health_failed", None),
            ("auto_restart_start", 1),
            ("auto_restart_failed", 1),
            ("auto_restart_start", 2),
            ("auto_restart_failed", 2),
            ("auto_restart_gave_up", None),
        ]

    async def test_only_health_makes_the_count_of_attempts_start_anew(
        self, open_gate: OpenGate
    ) -> None:
        """An engine that fails every probe after its boot was not well, however long that takes."""
        patient = Health(interval_s=5, max_failures=3)  # 15 s to be found failed
        async with open_gate(restart=Restart(backoff_max_s=10), health=patient) as gate:
            gate.run_loops()
            await gate.engine()
            for well_s in (12, 0, 0, 12):
                await gate.pass_time(well_s)
                for healthy, status in ((False, Status.FAILED), (True, Status.RUNNING)):
                    gate.fake().healthy = healthy
                    while gate.live().engine.status is not status:
                        await gate.pass_time(1)
            started = (await gate.audit(action="auto_restart_start"))[::-1]
        assert [entry["metadata"]["attempt"] for entry in started] == [1, 2, 3, 1]

    async def test_a_failed_boot_carries_the_last_fifty_lines(self, gate: Gate) -> None:
        """What the engine said last, without the keys it may have said."""
        await reach(gate, "stopped")
        engine_id, key = gate.live().engine.engine_id, gate.live().api_key
        gate.backend.world.logs[engine_id] = [f"line {n} {key}" for n in range(80)]
        gate.backend.fail("start")
        await gate.post("/engines/ann/start")
        entry = (await gate.audit(action="start"))[0]

        assert entry["outcome"] == "failed"
        assert entry["metadata"]["log"] == [f"line {n} sk-eg-***" for n in range(30, 80)]

    async def test_vetoes_are_coalesced(self, gate: Gate) -> None:
        """An engine that stays busy leaves an entry a minute, not one a look."""
        gate.run_loops()
        await gate.policy(idle_sleep_s=10)
        await gate.engine()
        gate.fake().busy = True
        await gate.pass_time(60)
        entries = await gate.audit(action="sleep_vetoed")

        assert [(entry["outcome"], entry["metadata"]["signal"]) for entry in entries] == [
            ("denied", "busy")
        ]
        assert len((await gate.get("/engines/ann/activity")).json()["vetoes"]) > 1

    async def test_denials_are_told_apart_by_product_and_reason(self, gate: Gate) -> None:
        """One entry for each in ten seconds, however many there were."""
        other = (await gate.product("other"))["platform_api_key"]
        for _ in range(3):
            await refused(gate)
            await gate.post("/engines/ann/admit", {}, key=other)
        await gate.policy(rate_limit_rpm=0)
        for _ in range(3):
            await gate.admit()
        entries = await gate.audit(action="admit_denied")

        told = {(entry["actor"], entry["metadata"]["reason"]) for entry in entries}
        assert told == {
            ("demo", "engine_not_found"),
            ("other", "engine_not_found"),
            ("demo", "rate_limited"),
        }
        assert len(entries) == 3

    async def test_a_restart_of_the_gate_is_in_the_trail(self, open_gate: OpenGate) -> None:
        """Each engine that was adopted, and what had to be put right."""
        async with open_gate() as before:
            for user_id in ("ann", "bob", "carl"):
                await before.engine(user_id)
            await before.post("/engines/bob/sleep")
            await before.post("/engines/carl/stop")
            gone = before.fake("bob")
        gone.presence = Presence.RUNNING  # thawed while nobody looked
        async with open_gate(after=before) as gate:
            await gate.durable()
            adopted = await gate.audit(action="adopt")
            assert {entry["user_id"] for entry in adopted} == {"ann", "bob"}
            put_right = await gate.audit(action="recovered")
            assert {entry["user_id"] for entry in put_right} == {"bob", None}
            assert gate.fake("bob").presence == "paused"

    async def test_a_shared_outage_is_in_the_trail(self, gate: Gate) -> None:
        """So many at once are not each at fault; nobody is restarted, and it is said."""
        for number in range(6):
            await gate.engine(f"u{number}")
            gate.fake(f"u{number}").healthy = False
        for _ in range(gate.config.health.max_failures):
            await gate.health.sweep()

        assert (await gate.get("/status")).json()["by_status"]["running"] == 6
        assert (await gate.audit(action="restarts_suspended"))[0]["metadata"] == {"engines": 6}

    async def test_orphans_go_after_a_grace_and_are_in_the_trail(self, gate: Gate) -> None:
        """An engine without a row is removed, its data is not."""
        made = await gate.engine()
        gate.backend.world.engines["stray"] = FakeEngine(gate.fake().spec)
        gate.backend.world.engines["stray"].spec = msgspec.structs.replace(
            gate.fake().spec, engine_id="stray", port=9900
        )
        gate.backend.world.volumes["stray"] = {}
        for _ in range(2):
            await gate.recovery.compare()
            await gate.clock.advance(59)
        assert not await gate.audit(action="orphan_removed")
        await gate.clock.advance(2)
        await gate.recovery.compare()
        await gate.clock.advance()

        assert len(await gate.audit(action="orphan_removed")) == 1
        assert set(gate.backend.world.engines) == {made["engine_id"]}
        assert "stray" in gate.backend.world.volumes


class TestSection26Products:
    """What an operator does with products."""

    async def test_register_shows_the_key_once(self, gate: Gate) -> None:
        """Only its SHA-256 is kept, so no other answer has it."""
        answer = await gate.product("other", max_engines=3)

        assert set(answer) == {"product_id", "slug", "platform_api_key"}
        assert answer["slug"] == "other"
        assert answer["platform_api_key"].startswith("pk-eg-")
        shown = await gate.admin("GET", f"/products/{answer['product_id']}")
        assert answer["platform_api_key"] not in shown.text

    async def test_a_slug_is_taken_once(self, gate: Gate) -> None:
        """Also by a second caller at the same moment."""
        asked = {"slug": "twice", "display_name": "Twice"}
        answers = await asyncio.gather(
            *(gate.admin("POST", "/products/register", asked) for _ in range(3))
        )

        assert sorted(answer.status_code for answer in answers) == [200, 409, 409]
        assert code(max(answers, key=lambda one: one.status_code)) == "PRODUCT_SLUG_EXISTS"

    @pytest.mark.parametrize("slug", ["", "-a", "A", "a_b", "a" * 64, "ä", "a b", "a\n"])
    async def test_a_wrong_slug_is_refused(self, gate: Gate, slug: str) -> None:
        """A slug is the actor in the trail and the value of a header."""
        asked = {"slug": slug, "display_name": "X"}
        answer = await gate.admin("POST", "/products/register", asked)

        assert (answer.status_code, code(answer)) == (400, "INVALID_REQUEST")
        assert "slug" in answer.json()["error"]["message"]

    async def test_products_are_listed_and_shown(self, gate: Gate) -> None:
        """The one is an entry of the other; `engines` counts every row."""
        await gate.policy(max_engines=5, idle_sleep_s=60)
        await reach(gate, "stopped")
        listed = (await gate.admin("GET", "/products")).json()
        product = listed["products"][0]

        assert listed["total"] == 1
        assert set(product) == {
            "product_id",
            "slug",
            "display_name",
            "policy",
            "created_at",
            "engines",
        }
        assert product["policy"] == {"max_engines": 5, "idle_sleep_s": 60}
        assert (product["display_name"], product["engines"]) == ("Demo", 1)
        shown = await gate.admin("GET", f"/products/{product['product_id']}")
        assert shown.json() == product

    async def test_the_policy_is_replaced_as_a_whole(self, gate: Gate) -> None:
        """A field left out is a limit taken away, from the next request on."""
        product_id = gate.registry.by_slug["demo"].product.product_id
        road = f"/products/{product_id}/policy"
        await gate.admin("PUT", road, {"policy": {"max_engines": 0}})
        assert code(await gate.post("/engines/provision", {"user_id": "ann"})) == "QUOTA_EXCEEDED"
        answer = await gate.admin("PUT", road, {"policy": {"rate_limit_rpm": 9.0}})

        assert answer.text == '{"policy":{"rate_limit_rpm":9}}'
        await gate.engine()

    async def test_a_lowered_quota_leaves_engines_alone(self, gate: Gate) -> None:
        """It refuses new ones only."""
        await gate.engine()
        await gate.policy(max_engines=0)

        assert (await admitted(gate))["engine"]["status"] == "running"

    @pytest.mark.parametrize(
        "policy",
        [
            {"max_engines": -1},
            {"max_engines": True},
            {"max_engines": 1.5},
            {"max_engines": "1"},
            {"max_engines": 10**20},
            {"rate_limit_rpm": -1},
            {"user_rate_limit_rpm": "x"},
            {"idle_sleep_s": -0.5},
            {"idle_sleep_s": False},
            {"idle_sleep_s": 1e300},
            {"unknown": 1},
            [],
            None,
        ],
    )
    async def test_an_impossible_policy_is_refused(self, gate: Gate, policy: Any) -> None:
        """On both roads to one, with nothing changed."""
        product_id = gate.registry.by_slug["demo"].product.product_id
        put = await gate.admin("PUT", f"/products/{product_id}/policy", {"policy": policy})
        asked = {"slug": "other", "display_name": "X", "policy": policy}
        made = await gate.admin("POST", "/products/register", asked)

        for answer in (put, made):
            assert (answer.status_code, code(answer)) == (400, "INVALID_REQUEST")
        assert list(gate.registry.by_slug) == ["demo"]

    async def test_all_faults_of_a_policy_are_told_at_once(self, gate: Gate) -> None:
        """Nobody has to find them one by one."""
        asked = {"policy": {"max_engines": -1, "idle_sleep_s": -1}}
        product_id = gate.registry.by_slug["demo"].product.product_id
        answer = await gate.admin("PUT", f"/products/{product_id}/policy", asked)

        message = answer.json()["error"]["message"]
        assert "max_engines" in message
        assert "idle_sleep_s" in message

    async def test_deleting_a_product_destroys_its_engines(self, gate: Gate) -> None:
        """Its key stops, its engines and their data go, and the answer counts them."""
        for user_id in ("ann", "bob"):
            await gate.engine(user_id)
        product_id = gate.registry.by_slug["demo"].product.product_id
        answer = await gate.admin("DELETE", f"/products/{product_id}")

        assert answer.json() == {
            "status": "deleted",
            "product_id": product_id,
            "engines_destroyed": 2,
        }
        assert (await gate.get("/engines")).status_code == 401
        assert (await gate.admin("GET", "/products")).json() == {"products": [], "total": 0}
        assert not gate.backend.world.volumes
        again = await gate.admin("DELETE", f"/products/{product_id}")
        assert (again.status_code, code(again)) == (404, "PRODUCT_NOT_FOUND")

    @pytest.mark.parametrize("product_id", ["nobody", "5c2f8b1e-6a0d-4f57-9c3e-2f4b7f0a1d11"])
    async def test_an_unknown_product_is_not_found(self, gate: Gate, product_id: str) -> None:
        """Also where the id is no UUID."""
        for method, path, body in (
            ("GET", "", None),
            ("PUT", "/policy", {"policy": {}}),
            ("POST", "/rotate-platform-key", None),
            ("DELETE", "", None),
        ):
            answer = await gate.admin(method, f"/products/{product_id}{path}", body)
            assert (answer.status_code, code(answer)) == (404, "PRODUCT_NOT_FOUND")

    @pytest.mark.parametrize("overlap_s", [-1, "1", True, 1e300, None])
    async def test_a_wrong_overlap_is_refused(self, gate: Gate, overlap_s: Any) -> None:
        """The old key goes on working."""
        product_id = gate.registry.by_slug["demo"].product.product_id
        road = f"/products/{product_id}/rotate-platform-key"
        answer = await gate.admin("POST", road, {"overlap_s": overlap_s})

        assert (answer.status_code, code(answer)) == (400, "INVALID_REQUEST")
        assert (await gate.get("/engines")).status_code == 200


class TestSection26Keys:
    """The key of a product."""

    async def test_only_the_digest_of_a_platform_key_is_kept(
        self, gate: Gate, tmp_path: Path
    ) -> None:
        """What is on disk opens nothing."""
        key = (await gate.product("other"))["platform_api_key"]
        written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())

        assert key.encode() not in written
        assert digest_hex(key).encode() in written

    async def test_a_rotation_without_overlap_stops_the_old_key_at_once(self, gate: Gate) -> None:
        """With one, both work until it is over; then the new one alone."""
        await gate.engine()
        product_id = gate.registry.by_slug["demo"].product.product_id
        road = f"/products/{product_id}/rotate-platform-key"
        answer = await gate.admin("POST", road)
        assert set(answer.json()) == {"product_id", "platform_api_key"}
        assert (await gate.admit()).status_code == 401
        first, gate.key = gate.key, answer.json()["platform_api_key"]
        await admitted(gate)

        second, gate.key = (
            gate.key,
            (await gate.admin("POST", road, {"overlap_s": 2.5})).json()["platform_api_key"],
        )
        await gate.clock.advance(2.4)
        for key in (second, gate.key):
            assert (await gate.post("/engines/ann/admit", key=key)).status_code == 200
        await gate.clock.advance(0.2)
        assert (await gate.post("/engines/ann/admit", key=second)).status_code == 401
        assert (await gate.post("/engines/ann/admit", key=first)).status_code == 401
        await admitted(gate)

    async def test_a_deletion_stops_the_key_before_the_engines_are_gone(self, gate: Gate) -> None:
        """The answer comes when they are, counts them, and the slug is free again."""
        await gate.engine("ann")
        await gate.engine("bob")
        product_id = gate.registry.by_slug["demo"].product.product_id
        hang = gate.backend.hang("destroy")
        deleting = gate.spawn(gate.admin("DELETE", f"/products/{product_id}"))
        await hang.reached.wait()
        assert code(await gate.admit()) == "INVALID_PLATFORM_KEY"
        assert (await gate.get("/engines")).status_code == 401
        assert not deleting.done()
        hang.release()

        assert (await deleting).json()["engines_destroyed"] == 2
        assert not gate.backend.world.engines
        await gate.product("demo")


class TestSection27Errors:
    """Every non-2xx has one shape and a code from one table."""

    def test_every_code_is_provoked(self) -> None:
        """The table holds 24 codes, and each of them can happen."""
        assert set(BY_CODE) == set(STATUS)
        assert len(STATUS) == 24

    @pytest.mark.parametrize("expected", STATUS)
    async def test_each_code_has_its_status_and_shape(self, gate: Gate, expected: str) -> None:
        """A program reads the code, a person the message."""
        answer = await BY_CODE[expected](gate)

        assert code(answer) == expected
        assert answer.status_code == STATUS[expected]
        assert set(answer.json()) == {"error"}
        assert answer.headers["content-type"] == "application/json"

    async def test_a_500_names_a_reference_that_the_log_has(
        self, gate: Gate, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The caller learns nothing of the inside, the operator finds everything."""
        answer = await internal_error(gate)
        error = answer.json()["error"]

        assert "secret" not in answer.text
        assert error["reference"] in error["message"]
        assert error["reference"] in caplog.text
        assert "secret of /var/lib" in caplog.text

    async def test_a_bug_in_a_route_is_a_500_too(
        self, gate: Gate, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Whatever breaks, the shape of the answer holds."""
        gate.services.registry.trail.history = lambda *_: 1 / 0  # type: ignore[assignment]
        answer = await gate.admin("GET", "/audit")

        assert (answer.status_code, code(answer)) == (500, "INTERNAL_ERROR")
        assert "division" not in answer.text
        assert answer.json()["error"]["reference"] in caplog.text

    async def test_helping_fields_come_with_the_code(self, gate: Gate) -> None:
        """A program need not read the message."""
        quota = (await quota_exceeded(gate)).json()["error"]
        assert quota["limit"] == 0
        large = (await payload_too_large(gate)).json()["error"]
        assert large["limit"] == gate.config.server.max_body_bytes


class TestSection28Health:
    """Liveness and readiness of enginegate itself."""

    async def test_all_well(self, gate: Gate) -> None:
        """A balancer sends requests here."""
        answer = await gate.client.get("/health")

        assert answer.json() == {
            "status": "ok",
            "subsystems": {"journal": "ok", "backend": "ok"},
        }

    async def test_trouble_behind_is_degraded_and_still_200(self, gate: Gate) -> None:
        """Admits of running engines still work, so a balancer must not take it out."""
        gate.backend.down = True
        await gate.health.sweep()
        answer = await gate.client.get("/health")
        assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
        assert answer.json()["subsystems"] == {"journal": "ok", "backend": "down"}

        gate.journal.fail("told to")
        answer = await gate.client.get("/health")
        assert answer.json()["subsystems"]["journal"] == "failed"

    @pytest.mark.parametrize(
        ("phase", "expected"),
        [("recovering", "STORAGE_UNAVAILABLE"), ("stopping", "SHUTTING_DOWN")],
    )
    async def test_503_only_while_replaying_or_stopping(
        self, gate: Gate, phase: str, expected: str
    ) -> None:
        """Only then another one should be asked."""
        gate.services.phase.name = phase
        answer = await gate.client.get("/health")

        assert (answer.status_code, code(answer)) == (503, expected)
        assert answer.json()["error"]["status"] == phase

    async def test_while_stopping_every_change_is_refused(self, gate: Gate) -> None:
        """Reads and admits of running engines go on to the end."""
        await gate.engine()
        product_id = gate.registry.by_slug["demo"].product.product_id
        gate.services.phase.name = "stopping"
        await gate.operations.close(0)

        for method, path, body in (
            ("POST", "/engines/provision", {"user_id": "bob"}),
            ("POST", "/engines/ann/stop", None),
            ("POST", "/engines/ann/sleep", None),
            ("POST", "/engines/ann/rotate-key", None),
            ("DELETE", "/engines/ann", None),
        ):
            assert code(await gate.call(method, path, body)) == "SHUTTING_DOWN", path
        for method, path, body in (
            ("POST", "/products/register", {"slug": "x", "display_name": "X"}),
            ("PUT", f"/products/{product_id}/policy", {"policy": {}}),
            ("POST", f"/products/{product_id}/rotate-platform-key", None),
            ("DELETE", f"/products/{product_id}", None),
        ):
            assert code(await gate.admin(method, path, body)) == "SHUTTING_DOWN", path
        assert (await gate.get("/engines/ann")).status_code == 200
        await admitted(gate)


class TestSection3EnginesSide:
    """How a key reaches an engine; the rest needs real processes."""

    async def test_recreate_replaces_the_process_and_nothing_else(self, gate: Gate) -> None:
        """Another life on the same volume, port and name, which knows the new key alone."""
        made = await gate.engine()
        life, volume = gate.fake().life, gate.backend.world.volumes[made["engine_id"]]
        key = (await gate.post("/engines/ann/rotate-key")).json()["api_key"]

        assert gate.fake().life != life
        assert gate.fake().key_file == (digest_hex(key),)
        assert (await gate.get("/engines/ann")).json()["url"] == made["url"]
        assert gate.backend.world.volumes[made["engine_id"]] is volume

    async def test_the_old_one_comes_back_if_the_new_one_does_not_get_healthy(
        self, gate: Gate
    ) -> None:
        """The old key stays valid, the engine stays up, the answer is an error."""
        made = await gate.engine()
        hang = gate.backend.hang("start", after=True)
        call = gate.spawn(gate.post("/engines/ann/rotate-key"))
        await hang.reached.wait()
        gate.fake().healthy = False
        hang.release()
        again = gate.backend.hang("start", nth=1)
        async with asyncio.timeout(PATIENCE_S):
            while not again.reached.is_set():
                await gate.clock.advance(1)
        gate.fake().healthy = True
        again.release()
        answer = await gate.settled(call)

        assert (answer.status_code, code(answer)) == (504, "BOOT_TIMEOUT")
        assert gate.fake().key_file == (digest_hex(made["api_key"]),)
        assert (await admitted(gate))["engine"]["api_key"] == made["api_key"]

    async def test_live_overlaps_for_as_long_as_configured(self, open_gate: OpenGate) -> None:
        """New and old are in the file, the same process goes on, and then the old is dropped."""
        engine = EngineSettings(rotate_mode="live", key_overlap_s=60)
        async with open_gate(engine=engine) as gate:
            made = await gate.engine()
            life = gate.fake().life
            key = (await gate.post("/engines/ann/rotate-key")).json()["api_key"]
            both = (digest_hex(key), digest_hex(made["api_key"]))
            assert gate.fake().key_file == both
            await gate.clock.advance(59)
            await gate.recovery.overlaps.end_due()
            assert gate.fake().key_file == both
            await gate.clock.advance(1)
            await gate.recovery.overlaps.end_due()

            assert gate.fake().key_file == both[:1]
            assert gate.fake().life == life

    async def test_a_live_rotation_makes_nobody_wait(self, open_gate: OpenGate) -> None:
        """There is no downtime to wait for."""
        async with open_gate(engine=EngineSettings(rotate_mode="live")) as gate:
            await gate.engine()
            hang = gate.backend.hang("put_key")
            gate.spawn(gate.post("/engines/ann/rotate-key"))
            await hang.reached.wait()

            assert (await admitted(gate))["waited_ms"] == 0


class TestSection5Durability:
    """What an answer means; crashes and files are shown by the end-to-end tests."""

    @pytest.mark.parametrize("verb", ["stop", "sleep", "rotate-key", "destroy", "policy", "start"])
    async def test_an_answer_waits_for_the_disk_and_so_does_every_reader(
        self, gate: Gate, monkeypatch: pytest.MonkeyPatch, verb: str
    ) -> None:
        """Until the sync is done, nothing of the change is told or shown to anybody."""
        await reach(gate, "stopped" if verb == "start" else "running")
        before = (await gate.get("/engines/ann")).text
        policy = (await gate.admin("GET", "/products")).text
        trail = await gate.audit()
        disk, slow = threading.Event(), gate.journal.append

        def append(*args: Any, **more: Any) -> int:
            disk.wait(PATIENCE_S)
            return slow(*args, **more)

        monkeypatch.setattr(gate.journal, "append", append)
        product_id = gate.registry.by_slug["demo"].product.product_id
        call = gate.spawn(
            gate.call("DELETE", "/engines/ann")
            if verb == "destroy"
            else gate.admin("PUT", f"/products/{product_id}/policy", {"policy": {"max_engines": 1}})
            if verb == "policy"
            else gate.post(f"/engines/ann/{verb}")
        )
        await asyncio.wait([call], timeout=0.1)
        assert not call.done()
        assert (await gate.get("/engines/ann")).text == before
        assert (await gate.admin("GET", "/products")).text == policy
        answer = await gate.client.get("/audit", headers=ADMIN)
        assert answer.json()["entries"] == trail
        disk.set()

        assert (await call).status_code == 200

    async def test_what_was_answered_is_there_after_a_restart(self, open_gate: OpenGate) -> None:
        """Rows, keys, policies and trail, as they were; running engines were not restarted."""
        async with open_gate() as before:
            await before.policy(max_engines=9)
            for user_id in ("ann", "bob", "carl"):
                await before.engine(user_id)
            await before.post("/engines/bob/sleep")
            await before.post("/engines/carl/stop")
            rows = (await before.get("/engines")).json()
            keys = [(await before.get(f"/engines/{u}")).json()["api_key"] for u in ("ann", "bob")]
            trail = await before.audit()
            lives = {one.spec.engine_id: one.life for one in before.backend.world.engines.values()}
        async with open_gate(after=before) as gate:
            assert (await gate.get("/engines")).json() == rows
            again = [(await gate.get(f"/engines/{u}")).json()["api_key"] for u in ("ann", "bob")]
            assert again == keys
            assert (await gate.audit())[-len(trail) :] == trail
            policy = (await gate.admin("GET", "/products")).json()["products"][0]["policy"]
            assert policy == {"max_engines": 9}
            now = {one.spec.engine_id: one.life for one in gate.backend.world.engines.values()}
            assert now == lives

    async def test_a_failed_sync_is_final_until_a_restart(
        self, open_gate: OpenGate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Every change answers 503, admits of running engines go on, `/health` says so."""
        async with open_gate() as before:
            await before.engine()
            before.journal.fail("told to")
            for call in (
                before.post("/engines/ann/sleep"),
                before.post("/engines/provision", {"user_id": "bob"}),
                before.admin("POST", "/products/register", {"slug": "x", "display_name": "X"}),
            ):
                answer = await call
                assert (answer.status_code, code(answer)) == (503, "STORAGE_UNAVAILABLE")
            await admitted(before)
            health = (await before.client.get("/health")).json()
            assert (health["status"], health["subsystems"]["journal"]) == ("degraded", "failed")
            assert (await before.admin("GET", "/status")).json()["journal"] == "failed"
        async with open_gate(after=before) as gate:
            assert (await gate.post("/engines/ann/sleep")).status_code == 200
