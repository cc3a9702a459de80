"""Admit: who goes on, who is refused and why, and what it costs whom."""

import asyncio
from time import monotonic_ns
from typing import Any

import pytest

from enginegate.admission import Admitted, Refused
from enginegate.config import Config, EngineSettings
from enginegate.errors import (
    BackendFailedError,
    BootTimeoutError,
    EngineAlreadyRunningError,
    EngineNotRunningError,
    PortExhaustionError,
    QuotaExceededError,
    RateLimitedError,
    StorageUnavailableError,
    WakeTimeoutError,
)
from enginegate.ratelimit import NS_PER_S, SlidingWindow
from tests.fakes import settle


def reason(answer: Admitted | Refused) -> str:
    assert isinstance(answer, Refused), answer
    return answer.reason


async def test_unknown_users_are_told_so(gate: Any) -> None:
    """Without auto_provision a new user gets `engine_not_found` and nothing is made."""
    owner = await gate.product()
    assert reason(await gate.admit(owner)) == "engine_not_found"
    assert not gate.backend.alive


async def test_five_hundred_admits_of_one_new_user_make_one_engine(gate: Any) -> None:
    """All callers get the same engine, and it is provisioned once."""
    owner = await gate.product()
    answers = await asyncio.gather(*(gate.admit(owner, auto_provision=True) for _ in range(500)))
    assert {answer.action for answer in answers} == {"provisioned"}
    assert len({(a.live.engine.engine_id, a.live.api_key) for a in answers}) == 1
    assert len(gate.backend.alive) == 1
    assert gate.actions() == ["policy_register", "provision"]


async def test_twelve_new_users_against_a_quota_of_three_make_three(gate: Any) -> None:
    """The quota is reserved in the turn that decides, so that nobody slips through."""
    owner = await gate.product(max_engines=3)
    answers = await asyncio.gather(
        *(gate.admit(owner, f"user{n}", auto_provision=True) for n in range(12)),
        return_exceptions=True,
    )
    assert sum(isinstance(answer, Admitted) for answer in answers) == 3
    assert sum(isinstance(answer, QuotaExceededError) for answer in answers) == 9
    assert len(gate.backend.alive) == 3


async def test_the_warm_road_answers_and_moves_the_lease(gate: Any, clock: Any) -> None:
    """A running engine is answered from bytes, and the answer keeps it awake."""
    owner = await gate.product()
    assert gate.warm() is None
    live = await gate.engine(owner)
    await clock.advance(100)
    assert gate.warm() == f"{live.engine.engine_id} {live.api_key} 900.0".encode()
    assert live.lease_until == clock.now() + 900
    assert gate.warm(body=b'{"auto_wake":true}') is not None
    assert gate.warm(body=b'{"auto_wake":true}') is not None


@pytest.mark.parametrize(
    "body", [b'{"touch":false}', b'{"verify":true}', b"{", b'{"x":1}', b'{"wait_s":-1}']
)
async def test_the_warm_road_leaves_special_bodies_alone(gate: Any, body: bytes) -> None:
    """What asks for more, or is wrong, takes the long road and is not counted here."""
    owner = await gate.product(rate_limit_rpm=1)
    await gate.engine(owner)
    assert gate.warm(body=body) is None
    assert gate.warm() is not None


async def test_an_unknown_key_is_not_warm(gate: Any) -> None:
    """The warm road admits nobody without a product."""
    await gate.engine(await gate.product())
    assert gate.admission.warm(b"pk-eg-wrong", "ann", b"") is None


async def test_the_product_limit_holds_over_both_roads(gate: Any) -> None:
    """Calls on either road share the window, and refused calls do not count."""
    owner = await gate.product(rate_limit_rpm=2)
    await gate.engine(owner)
    assert gate.warm() is not None
    assert isinstance(await gate.admit(owner), Admitted)
    assert gate.warm() is None
    with pytest.raises(RateLimitedError) as refused:
        await gate.admit(owner)
    assert 0 < refused.value.fields["retry_after_s"] <= 60


async def test_the_user_limit_spares_other_users(gate: Any) -> None:
    """One busy user uses up the own window only; a call refused there costs the product nothing."""
    owner = await gate.product(user_rate_limit_rpm=1, rate_limit_rpm=2)
    await gate.engine(owner)
    await gate.engine(owner, "bob")
    assert gate.warm() is not None
    assert gate.warm() is None
    with pytest.raises(RateLimitedError):
        await gate.admit(owner)
    assert gate.warm("bob") is not None


async def test_who_is_over_both_limits_waits_for_both(gate: Any) -> None:
    """Told the shorter wait, a caller would come back too early."""
    owner = await gate.product(rate_limit_rpm=1, user_rate_limit_rpm=1)
    await gate.engine(owner)
    now_ns = monotonic_ns()
    owner.window.add(now_ns - 50 * NS_PER_S)
    owner.user_windows["ann"] = SlidingWindow()
    owner.user_windows["ann"].add(now_ns)
    with pytest.raises(RateLimitedError) as refused:
        await gate.admit(owner)
    assert 59 < refused.value.fields["retry_after_s"] <= 60


async def test_a_limit_of_zero_refuses_everybody(gate: Any) -> None:
    """There is no time after which to try again."""
    owner = await gate.product(rate_limit_rpm=0)
    with pytest.raises(RateLimitedError) as refused:
        await gate.admit(owner)
    assert refused.value.fields["retry_after_s"] is None


async def test_a_sleeper_is_woken_only_where_asked(gate: Any) -> None:
    """`engine_sleeping` without auto_wake, `woke` with it, and the lease is full again."""
    owner = await gate.product()
    live = await gate.engine(owner)
    await gate.lifecycle.sleep(live, actor="acme")
    assert gate.warm() is None
    assert reason(await gate.admit(owner)) == "engine_sleeping"
    answer = await gate.admit(owner, auto_wake=True)
    assert (answer.action, answer.lease_s) == ("woke", 900)
    assert gate.backend.engine(live.engine.engine_id).presence == "running"


async def test_a_stop_is_not_overridden(gate: Any) -> None:
    """auto_wake does not start what was stopped on request."""
    owner = await gate.product()
    await gate.lifecycle.stop(await gate.engine(owner), actor="acme")
    assert reason(await gate.admit(owner, auto_wake=True)) == "engine_stopped"


async def test_who_does_not_wait_hears_the_state_and_the_boot_goes_on(
    gate: Any, clock: Any
) -> None:
    """wait_s 0 answers at once; the engine comes all the same."""
    gate.backend.boot_s = 5
    owner = await gate.product()
    answer = await gate.admit(owner, auto_provision=True, wait_s=0)
    assert (answer.reason, answer.retry_after_s) == ("engine_provisioning", 1.0)
    await clock.advance(6)
    assert isinstance(await gate.admit(owner), Admitted)


async def test_who_is_told_of_a_boot_finds_its_row(gate: Any) -> None:
    """No answer tells of an engine that is not on the disk yet, to whoever does not wait."""
    gate.backend.boot_s = 5
    owner = await gate.product()
    gate.journal.hold()
    first = asyncio.create_task(gate.admit(owner, auto_provision=True, wait_s=0))
    await settle()
    second = asyncio.create_task(gate.admit(owner, wait_s=0))
    await settle()
    assert (first.done(), second.done()) == (False, False)
    gate.journal.release()
    assert {reason(await first), reason(await second)} == {"engine_provisioning"}
    assert owner.engines["ann"].engine.status == "provisioning"


async def test_who_does_not_wait_hears_that_the_row_could_not_be_written(gate: Any) -> None:
    """STORAGE_UNAVAILABLE, as for those who wait."""
    owner = await gate.product()
    gate.journal.hold()
    call = asyncio.create_task(gate.admit(owner, auto_provision=True, wait_s=0))
    await settle()
    gate.journal.failing = True
    gate.journal.release()
    with pytest.raises(StorageUnavailableError):
        await call


async def test_a_caller_that_leaves_cancels_nothing(gate: Any, clock: Any) -> None:
    """The boot belongs to the gate, not to the request."""
    gate.backend.boot_s = 5
    owner = await gate.product()
    caller = asyncio.create_task(gate.admit(owner, auto_provision=True))
    await settle()
    caller.cancel()
    await asyncio.wait([caller])
    await clock.advance(6)
    assert isinstance(await gate.admit(owner), Admitted)
    assert gate.backend.count("start") == 1


async def test_a_boot_that_takes_too_long_is_told_to_all_who_waited(gate: Any, clock: Any) -> None:
    """BOOT_TIMEOUT for every caller, the row is failed, a restart is planned."""
    gate.backend.boot_s = 1000
    owner = await gate.product()
    callers = [asyncio.create_task(gate.admit(owner, auto_provision=True)) for _ in range(3)]
    await settle()
    await clock.advance(61)
    for caller in callers:
        with pytest.raises(BootTimeoutError):
            await caller
    assert reason(await gate.admit(owner)) == "engine_restarting"
    failed = next(e for e in gate.registry.trail.recent if e.action == "provision")
    assert failed.metadata["log"]


async def test_a_wake_that_takes_too_long_fails_the_engine(gate: Any, clock: Any) -> None:
    """WAKE_TIMEOUT, and the engine is failed with a restart planned."""
    owner = await gate.product()
    live = await gate.engine(owner)
    await gate.lifecycle.sleep(live, actor="acme")
    gate.backend.engine(live.engine.engine_id).healthy = False
    caller = asyncio.create_task(gate.admit(owner, auto_wake=True))
    await settle()
    await clock.advance(11)
    with pytest.raises(WakeTimeoutError):
        await caller
    assert live.engine.status == "failed"
    assert live.engine.restart_at_ms is not None


async def test_a_dry_admit_does_not_extend_the_lease(gate: Any, clock: Any) -> None:
    """touch:false shows what is left and moves nothing."""
    owner = await gate.product()
    live = await gate.engine(owner)
    until = live.lease_until
    await clock.advance(100)
    answer = await gate.admit(owner, touch=False)
    assert answer.lease_s == 800
    assert live.lease_until == until


async def test_an_engine_that_never_sleeps_has_no_lease(gate: Any) -> None:
    """idle_sleep_s 0 shows as lease_s 0."""
    owner = await gate.product(idle_sleep_s=0)
    await gate.engine(owner)
    assert (await gate.admit(owner, touch=False)).lease_s == 0


async def test_verify_refuses_an_engine_that_does_not_answer_well(gate: Any) -> None:
    """The caller is told, and the health machinery counts it."""
    owner = await gate.product()
    live = await gate.engine(owner)
    assert isinstance(await gate.admit(owner, verify=True), Admitted)
    gate.backend.engine(live.engine.engine_id).healthy = False
    assert reason(await gate.admit(owner, verify=True)) == "engine_unhealthy"
    await gate.admit(owner, verify=True)
    assert reason(await gate.admit(owner, verify=True)) == "engine_restarting"
    assert live.engine.status == "failed"


async def test_verify_notices_a_process_that_is_gone(gate: Any) -> None:
    """One failed verify of a dead engine is enough to fail it."""
    owner = await gate.product()
    live = await gate.engine(owner)
    gate.backend.crash(live.engine.engine_id, tell=False)
    assert reason(await gate.admit(owner, verify=True)) == "engine_restarting"


async def test_destroy_overtakes_a_boot_and_its_waiters_hear_of_it(gate: Any, clock: Any) -> None:
    """Waiters get `engine_destroying`; afterwards the user has no engine."""
    gate.backend.boot_s = 30
    owner = await gate.product()
    waiter = asyncio.create_task(gate.admit(owner, auto_provision=True))
    await settle()
    await gate.lifecycle.destroy(owner.engines["ann"], actor="acme")
    assert reason(await waiter) == "engine_destroying"
    assert reason(await gate.admit(owner)) == "engine_not_found"
    assert gate.backend.world.engines == {}


async def test_an_admit_during_a_destroy_waits_or_is_told(gate: Any) -> None:
    """Who does not wait hears `engine_destroying`; who waits can have a new engine."""
    owner = await gate.product()
    live = await gate.engine(owner)
    hang = gate.backend.hang("destroy")
    going = asyncio.create_task(gate.lifecycle.destroy(live, actor="acme"))
    await hang.reached.wait()
    assert reason(await gate.admit(owner, wait_s=0)) == "engine_destroying"
    waiter = asyncio.create_task(gate.admit(owner, auto_provision=True))
    await settle()
    hang.release()
    assert (await waiter).action == "provisioned"
    await going


async def test_admits_wait_for_a_rotation_and_get_the_new_key(gate: Any) -> None:
    """While the engine is being replaced nobody is sent to it."""
    owner = await gate.product()
    live = await gate.engine(owner)
    hang = gate.backend.hang("start")
    rotating = asyncio.create_task(gate.lifecycle.rotate_key(live, actor="acme"))
    await hang.reached.wait()
    assert gate.warm() is None
    assert reason(await gate.admit(owner, wait_s=0)) == "engine_waking"
    waiter = asyncio.create_task(gate.admit(owner))
    await settle()
    hang.release()
    answer = await waiter
    assert answer.action == "none"
    assert answer.live.api_key == await rotating


async def test_a_stop_at_work_refuses_without_a_wait(gate: Any) -> None:
    """Nobody is sent to an engine that is being stopped."""
    owner = await gate.product()
    live = await gate.engine(owner)
    hang = gate.backend.hang("stop")
    stopping = asyncio.create_task(gate.lifecycle.stop(live, actor="acme"))
    await hang.reached.wait()
    assert reason(await gate.admit(owner)) == "engine_stopped"
    hang.release()
    await stopping


async def test_a_joined_start_is_called_started(gate: Any) -> None:
    """`action` tells what became of the engine while the call waited."""
    owner = await gate.product()
    live = await gate.engine(owner)
    await gate.lifecycle.stop(live, actor="acme")
    hang = gate.backend.hang("start")
    starting = asyncio.create_task(gate.lifecycle.start(live, version=None, actor="acme"))
    await hang.reached.wait()
    waiter = asyncio.create_task(gate.admit(owner))
    await settle()
    hang.release()
    assert (await waiter).action == "started"
    await starting


async def test_a_start_that_finds_the_engine_running_is_no_answer_to_an_admit(gate: Any) -> None:
    """A start that waited behind the wake is refused; the admit that waited is let in."""
    owner = await gate.product()
    live = await gate.engine(owner)
    await gate.lifecycle.sleep(live, actor="acme")
    hang = gate.backend.hang("unpause")
    admits = [asyncio.create_task(gate.admit(owner, auto_wake=True))]
    await settle()
    start = asyncio.create_task(gate.lifecycle.start(live, version=None, actor="acme"))
    admits += [asyncio.create_task(gate.admit(owner)) for _ in range(5)]
    await settle()
    hang.release()
    answers = await asyncio.gather(*admits)
    assert all(isinstance(answer, Admitted) for answer in answers)
    with pytest.raises(EngineAlreadyRunningError):
        await start


async def test_a_live_rotation_that_came_too_late_is_no_obstacle_to_a_wake(make_gate: Any) -> None:
    """A rotation holds no admits, but on an engine that sleeps by now it is waited for."""
    gate = await make_gate(Config(engine=EngineSettings(rotate_mode="live")))
    owner = await gate.product()
    live = await gate.engine(owner)
    await gate.lifecycle.sleep(live, actor="acme")
    rotation = asyncio.create_task(gate.lifecycle.rotate_key(live, actor="acme"))
    await asyncio.sleep(0)
    assert live.operation.verb == "rotate_key"
    assert (await gate.admit(owner, auto_wake=True)).action == "woke"
    with pytest.raises(EngineNotRunningError):
        await rotation


async def test_denials_are_audited_at_most_once_in_ten_seconds(gate: Any, clock: Any) -> None:
    """The first at once, the rest as a count; metrics know every one."""
    owner = await gate.product()
    for _ in range(5):
        await gate.admit(owner)
    gate.admission.denials.flush()
    await clock.advance(11)
    gate.admission.denials.flush()
    await settle()
    entries = [e for e in gate.registry.trail.recent if e.action == "admit_denied"]
    assert [e.metadata["count"] for e in entries] == [1, 4]
    assert owner.traffic.denials == {"engine_not_found": 5}


async def test_a_full_disk_refuses_changes_and_admits_go_on(gate: Any) -> None:
    """Provision says so before the backend is touched; running engines are served."""
    owner = await gate.product()
    await gate.engine(owner)
    gate.journal.status = "full"
    assert gate.warm() is not None
    assert isinstance(await gate.admit(owner), Admitted)
    with pytest.raises(StorageUnavailableError):
        await gate.admit(owner, "bob", auto_provision=True)
    assert gate.backend.count("start") == 1


async def test_a_backend_that_refuses_is_an_error_and_a_failed_row(gate: Any) -> None:
    """BACKEND_ERROR without the backend's own words."""
    owner = await gate.product()
    gate.backend.fail("start")
    with pytest.raises(BackendFailedError) as error:
        await gate.admit(owner, auto_provision=True)
    assert "told to fail" not in error.value.message
    assert owner.engines["ann"].engine.status == "failed"


async def test_no_free_port_is_said(make_gate: Any) -> None:
    """PORT_EXHAUSTION comes with the range, and no row is made."""
    from enginegate.config import Config, Ports

    gate = await make_gate(Config(ports=Ports(min=9001, max=9001)))
    owner = await gate.product()
    await gate.engine(owner)
    with pytest.raises(PortExhaustionError) as error:
        await gate.admit(owner, "bob", auto_provision=True)
    assert error.value.fields == {"min": 9001, "max": 9001}
    assert not owner.has("bob")


async def test_windows_of_users_who_have_gone_are_dropped(
    gate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory goes by the calls of the last minute, not by the users there ever were."""
    owner = await gate.product(user_rate_limit_rpm=5)
    await gate.admit(owner, "ann")
    await gate.admission.forget_idle_windows()
    assert set(owner.user_windows) == {"ann"}
    monkeypatch.setattr("enginegate.admission.monotonic_ns", lambda: 10**30)
    await gate.admission.forget_idle_windows()
    assert owner.user_windows == {}


async def test_an_admit_waits_for_work_that_found_the_engine_asleep(gate: Any) -> None:
    """A sleep for idleness whose turn came late holds nobody, but a wake comes after it."""
    owner = await gate.product()
    live = await gate.engine(owner)
    await gate.lifecycle.sleep(live, actor="a")
    go = asyncio.Event()
    gate.operations.begin(live, "sleep", lambda _: go.wait(), actor="system", holds=False)
    waiting = asyncio.ensure_future(gate.admit(owner, auto_wake=True))
    await settle()
    assert not waiting.done()
    go.set()
    assert isinstance(await waiting, Admitted)
    assert live.running
