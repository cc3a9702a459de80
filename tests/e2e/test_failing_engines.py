"""Engines that crash, fall ill or never come up: what is done, in which order, and what is said."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import engine_processes, eventually
from tests.e2e.shop import ODD_COMMAND, Shop, open_shop

Factory = pytest.TempPathFactory
BACKOFF_S = 0.3
BOOT_S = 1.5
ATTEMPTS = 2
BOOT_BOUND_S = 2.0  # of one boot of such an engine, on a machine that does other things too
ILL = b"HTTP/1.1 503 Ill\r\nContent-Length: 0\r\n\r\n"

# Two gates: one that never probes by itself, so that what it notices it noticed otherwise,
# and one that probes all the time.
RESTART = f"""
[restart]
backoff_base_s = {BACKOFF_S}
backoff_max_s = {BACKOFF_S}
max_attempts = {ATTEMPTS}
[boot]
timeout_s = {BOOT_S}
"""
UNPROBED = (
    f"[engine]\n{ODD_COMMAND}allowed_images = ['lab:*']\n[health]\ninterval_s = 3600\n{RESTART}"
)
PROBED = (
    f"[engine]\n{ODD_COMMAND}[health]\ninterval_s = 0.1\ntimeout_s = 0.5\nmax_failures = 2\n"
    f"{RESTART}"
)


@pytest.fixture(scope="module")
def unprobed(tmp_path_factory: Factory) -> Iterator[Shop]:
    with open_shop(tmp_path_factory.mktemp("unprobed"), UNPROBED) as shop:
        yield shop


@pytest.fixture(scope="module")
def probed(tmp_path_factory: Factory) -> Iterator[Shop]:
    with open_shop(tmp_path_factory.mktemp("probed"), PROBED) as shop:
        yield shop


def trail(shop: Shop) -> list[str]:
    """Return what the system did about the engine, oldest first."""
    entries = shop.server.audit(engine_id=shop.engine["engine_id"], actor="system")
    return [entry["action"] for entry in entries if entry["action"] != "health_check"]


def test_a_crash_is_noticed_at_once_and_repaired_within_backoff_and_a_boot(unprobed: Shop) -> None:
    """Without a single probe: the exit itself is heard."""
    unprobed.open("crash")
    pid, crashed_at = unprobed.pid, time.monotonic()
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: unprobed.look()["status"] == "failed", "it is noticed", seconds=1)
    noticed_s = time.monotonic() - crashed_at
    told = unprobed.admit()
    assert told["reason"] == "engine_restarting"
    assert 0 < told["retry_after_s"] <= BACKOFF_S + 1
    eventually(lambda: unprobed.look()["status"] == "running", "it is back")
    back_s = time.monotonic() - crashed_at

    assert noticed_s < BACKOFF_S
    assert BACKOFF_S * 0.9 < back_s < BACKOFF_S + BOOT_BOUND_S
    assert unprobed.pid != pid
    assert trail(unprobed) == ["health_failed", "auto_restart_start", "auto_restart_success"]
    failed = unprobed.server.audit(engine_id=unprobed.engine["engine_id"], action="health_failed")
    assert failed[0]["metadata"]["reason"] == "exited"
    assert unprobed.admit()["engine"]["api_key"] == unprobed.engine["api_key"]
    unprobed.close()


def alive(shop: Shop) -> bool:
    return shop.engine["engine_id"] in engine_processes(shop.server.directory)


def test_an_ill_engine_is_restarted_until_it_is_given_up_and_a_start_revives_it(
    probed: Shop,
) -> None:
    """health_failed, every attempt, gave_up, `engine_unhealthy`; then start, and counted anew."""
    probed.open("ill")
    whim = probed.data / "whim"
    whim.write_bytes(ILL)
    eventually(lambda: trail(probed)[-1:] == ["auto_restart_gave_up"], "it is given up")
    attempts = ["auto_restart_start", "auto_restart_failed"] * ATTEMPTS
    assert trail(probed) == ["health_failed", *attempts, "auto_restart_gave_up"]
    assert probed.look()["status"] == "failed"
    told = probed.admit(auto_wake=True, auto_provision=True)
    assert (told["reason"], told["retry_after_s"]) == ("engine_unhealthy", None)
    eventually(lambda: not alive(probed), "it is stopped for good", seconds=5)

    whim.unlink()
    assert probed.do("start")["status"] == "running"
    assert probed.admit()["admitted"]
    whim.write_bytes(ILL)
    eventually(lambda: trail(probed).count("auto_restart_start") > ATTEMPTS, "it falls ill again")
    whim.unlink()
    eventually(lambda: probed.admit()["admitted"], "it is back by itself")
    begun = probed.server.audit(engine_id=probed.engine["engine_id"], action="auto_restart_start")
    numbers = [entry["metadata"]["attempt"] for entry in begun]
    assert numbers[: ATTEMPTS + 1] == [*range(1, ATTEMPTS + 1), 1]
    probed.close()


@pytest.mark.parametrize(
    ("version", "code", "within_s"),
    [("lab:deaf", "BOOT_TIMEOUT", BOOT_S + 1), ("lab:quits", "BACKEND_ERROR", 1.5)],
)
def test_a_boot_that_comes_to_nothing_is_told_with_the_engines_last_words(
    unprobed: Shop, version: str, code: str, within_s: float
) -> None:
    """504 when its time is over, 502 as soon as it has gone; `failed`, fifty lines in the trail."""
    unprobed.user = version.replace(":", "-")
    began = time.monotonic()
    answer = unprobed.http.post(
        "/engines/provision", json={"user_id": unprobed.user, "engine_version": version}
    )
    took_s = time.monotonic() - began

    assert (answer.status_code, answer.json()["error"]["code"]) == (
        504 if code == "BOOT_TIMEOUT" else 502,
        code,
    )
    assert took_s < within_s
    assert unprobed.look()["status"] == "failed"
    [entry] = unprobed.server.audit(user_id=unprobed.user, action="provision")
    assert entry["outcome"] == "failed"
    assert entry["metadata"]["log"] == [f"{version} says {number}" for number in range(10, 60)]
    assert unprobed.admit()["reason"] in {"engine_restarting", "engine_unhealthy"}
    unprobed.close()


def test_a_start_after_a_failed_boot_is_the_way_back(unprobed: Shop) -> None:
    """With another version, which is what one does about a broken one."""
    unprobed.user = "repaired"
    body = {"user_id": unprobed.user, "engine_version": "lab:quits"}
    assert unprobed.http.post("/engines/provision", json=body).status_code == 502
    assert unprobed.do("start", engine_version="lab:fine")["status"] == "running"
    assert unprobed.admit()["engine"]["engine_version"] == "lab:fine"
    unprobed.close()


def test_a_rotation_leaves_a_slow_engine_the_time_that_a_stop_has(unprobed: Shop) -> None:
    """Its goodbye takes longer than a boot may: that is not counted against the new life."""
    unprobed.user = "slow"
    body = {"user_id": unprobed.user, "engine_version": "lab:slow"}
    unprobed.engine = unprobed.http.post("/engines/provision", json=body).json()
    pid, key = unprobed.pid, unprobed.do("rotate-key")["api_key"]
    assert unprobed.pid != pid
    assert unprobed.admit()["engine"]["api_key"] == key
    assert trail(unprobed) == []
    unprobed.close()
