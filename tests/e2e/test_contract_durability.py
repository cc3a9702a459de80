"""Section 5 of the contract with real processes and files: what a kill, a stop or damage leaves.

Mixed verbs under kill -9 are in `test_kill.py`, a second server on the directory in `test_cli.py`,
what a sync means for an answer in `tests/api/test_contract.py`, power loss, full disks, failing
syncs and file systems in `tests/journal`, orphans and what happens behind our back in
`tests/service/test_recovery.py`.
"""

import re
import signal
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import engine_processes, eventually
from tests.e2e.shop import Shop, open_shop

Factory = pytest.TempPathFactory
SETTINGS = """
[engine]
env = {SAMPLE_BOOT_DELAY_S = "0.5"}
[idle]
sleep_after_s = 600
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: Factory) -> Iterator[Shop]:
    with open_shop(tmp_path_factory.mktemp("durable"), SETTINGS) as shop:
        yield shop


def last_segment(directory: Path) -> Path:
    return max((directory / "data").glob("wal-*.egj"))


def test_everything_is_private(shop: Shop) -> None:
    """Directories 0700 and files 0600, engines' own data apart."""
    shop.open("private")
    data = shop.server.directory / "data"
    for path in (data, *data.rglob("*")):
        if not path.is_relative_to(data / "engines") or path.name == ".enginegate":
            expected = 0o700 if path.is_dir() else 0o600
            assert stat.S_IMODE(path.stat().st_mode) == expected, path
    shop.close()


def test_after_a_kill_leases_are_full_and_windows_empty(shop: Shop) -> None:
    """The engine goes on as it is; what was soft begins anew, and who is quiet goes to sleep."""
    with (
        shop.server.product("limited", rate_limit_rpm=1, user_rate_limit_rpm=1) as http,
        shop.server.product("sleepy", idle_sleep_s=3) as sleepy,
    ):
        assert sleepy.post("/engines/provision", json={"user_id": "bob"}).is_success
        made = http.post("/engines/ann/admit", json={"auto_provision": True}).json()["engine"]
        assert http.post("/engines/ann/admit").status_code == 429
        before = engine_processes(shop.server.directory)
        shop.server.stop(signal.SIGKILL)
        assert engine_processes(shop.server.directory) == before
        shop.server.start()

        answer = http.post("/engines/ann/admit", json={"touch": False}).json()
        assert answer["engine"] == made | {"last_health_at": answer["engine"]["last_health_at"]}
        assert 590 < answer["lease_s"] <= 600
        assert engine_processes(shop.server.directory) == before
        assert http.post("/engines/ann/admit").status_code == 429
        lease_s = sleepy.post("/engines/bob/admit", json={"touch": False}).json()["lease_s"]
        asked = time.monotonic()
        assert 0 < lease_s <= 3
        adopted = shop.server.audit(action="adopt", user_id="ann")
        assert [entry["engine_id"] for entry in adopted] == [made["engine_id"]]
        eventually(lambda: sleepy.get("/engines/bob").json()["status"] == "sleeping", "bob sleeps")
        assert lease_s - 0.1 < time.monotonic() - asked < lease_s + 2
        sleepy.delete("/engines/bob")
        http.delete("/engines/ann")


def test_a_boot_cut_in_half_by_a_kill_goes_on(shop: Shop) -> None:
    """The engine that was being made is there after the next start, once."""
    shop.user = "half"

    def provision() -> None:
        with pytest.raises(httpx.TransportError):
            shop.http.post("/engines/provision", json={"user_id": "half"})

    caller = threading.Thread(target=provision)
    caller.start()
    eventually(lambda: shop.look().get("status") == "provisioning", "it boots")
    shop.server.stop(signal.SIGKILL)
    caller.join()
    shop.server.start()

    assert shop.admit()["admitted"]
    shop.engine = shop.look()
    assert list(engine_processes(shop.server.directory)) == [shop.engine["engine_id"]]
    shop.close()


def test_a_stop_finishes_what_runs_takes_nothing_new_and_leaves_engines_up(shop: Shop) -> None:
    """SIGTERM: the boot under way is answered, a new change is not begun, exit 0."""
    shop.open("stays")
    answers: list[Any] = []
    body = {"user_id": "late"}
    caller = threading.Thread(
        target=lambda: answers.append(shop.http.post("/engines/provision", json=body))
    )
    headers = {"X-Admin-Key": shop.server.admin_key}
    with httpx.Client(base_url=shop.server.url, headers=headers) as other:
        caller.start()
        eventually(lambda: other.get("/status").json()["by_status"]["provisioning"], "it boots")
        shop.server.process.send_signal(signal.SIGTERM)
        eventually(lambda: refuses(other), "changes are refused")
    caller.join()

    assert shop.server.stop() == 0
    assert answers[0].status_code == 200
    late = answers[0].json()["engine_id"]
    assert set(engine_processes(shop.server.directory)) == {shop.engine["engine_id"], late}
    shop.server.start()
    assert shop.admit()["action"] == "none"
    shop.close()
    shop.user = "late"
    assert shop.admit()["admitted"]
    shop.close()


def refuses(http: httpx.Client) -> bool:
    """Whether a change is refused because of a shutdown, or not even listened to."""
    try:
        answer = http.post("/products/register", json={"slug": "shop", "display_name": "Shop"})
    except httpx.TransportError:
        return True
    return bool(answer.json()["error"]["code"] == "SHUTTING_DOWN")


def test_a_tail_that_never_finished_is_cut_off_with_a_warning(shop: Shop) -> None:
    """The record was never answered; everything before it is there."""
    server = shop.server
    with server.product("kept"):
        pass
    server.stop(signal.SIGKILL)
    segment = last_segment(server.directory)
    whole = segment.read_bytes()
    end = len(whole.rstrip(b"\0"))
    segment.write_bytes(whole[: end - 20] + bytes(len(whole) - end + 20))
    logged = len(server.log)
    server.start()

    warning = server.log[logged:]
    assert re.search(rf"{re.escape(segment.name)}.*dropped \d+ bytes at offset \d+", warning)
    slugs = [one["slug"] for one in server.admin("GET", "/products").json()["products"]]
    assert "shop" in slugs
    assert "kept" not in slugs


def test_other_damage_refuses_to_start_and_says_where_and_what_to_do(shop: Shop) -> None:
    """File, offset and command; nothing is changed, and with the file mended all is there."""
    server = shop.server
    with server.product("first"), server.product("second"):
        pass
    server.stop()
    segment = last_segment(server.directory)
    whole = segment.read_bytes()
    at = whole.index(b"first")
    damaged = whole[:at] + b"F" + whole[at + 1 :]
    segment.write_bytes(damaged)
    said = server.cli.run("serve", "--port", "0", exits=65).stderr

    assert segment.name in said
    assert re.search(r"offset \d+", said)
    assert "enginegate journal verify" in said
    assert segment.read_bytes() == damaged
    segment.write_bytes(whole)
    server.start()
    slugs = {one["slug"] for one in server.admin("GET", "/products").json()["products"]}
    assert {"shop", "first", "second"} <= slugs
