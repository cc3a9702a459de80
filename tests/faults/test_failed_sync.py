"""A disk that fails once and then says that all is well: nothing of it is believed."""

import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from enginegate.journal import verify
from tests.e2e.conftest import Server
from tests.faults.disks import Fleet
from tests.faults.traced import calls, traced

WATCHED = "trace=fdatasync,fsync,pwrite64,ftruncate"
ADMITS = 500


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    server = Server(tmp_path)
    server.start()
    found = Fleet(server)
    try:
        found.admit("ann", auto_provision=True)
        found.admit("bob", auto_provision=True)
        yield found
    finally:
        found.http.close()
        server.close()


@pytest.mark.parametrize(
    ("call", "error"), [("fdatasync", "EIO"), ("fdatasync", "ENOSPC"), ("pwrite64", "EIO")]
)
def test_after_a_failed_write_or_sync_the_file_is_never_touched_again(
    fleet: Fleet, tmp_path: Path, call: str, error: str
) -> None:
    """That change and all later ones: 503; admits go on; a restart recovers what was answered."""
    log, pid = tmp_path / "trace", fleet.server.process.pid
    inject = f"inject={call}:error={error}:when=4"
    with traced(pid, log, "-e", WATCHED, "-e", inject):
        for verb in ("stop", "start") * 4:
            answer = fleet.call("POST", f"/engines/ann/{verb}")
            if answer.status_code != 200:
                break
        assert answer.status_code == 503, answer.text
        assert answer.json()["error"]["code"] == "STORAGE_UNAVAILABLE"
        for verb in ("stop", "sleep", "rotate-key"):
            fleet.refused("POST", f"/engines/bob/{verb}")
        fleet.refused("DELETE", "/engines/bob")
        fleet.refused("POST", "/engines/provision", user_id="cid")
        assert all(fleet.admit("bob")["admitted"] for _ in range(ADMITS))
        assert fleet.health()["status"] == "degraded"
        assert fleet.journal() == "failed"
    seen = calls(log)
    at = next(index for index, one in enumerate(seen) if one.injected)
    assert (seen[at].name, Path(seen[at].path).suffix) == (call, ".egj")
    later = [one for one in seen[at + 1 :] if one.path == seen[at].path]
    assert later == [], "the file was touched after its failure"

    fleet.server.stop(signal.SIGKILL)
    fleet.server.start()
    assert fleet.health()["status"] == "ok"
    rows = {
        row["user_id"]: row["status"] for row in fleet.call("GET", "/engines").json()["engines"]
    }
    assert rows["bob"] == "running"
    assert rows["ann"] in {"running", "stopped", "failed"}  # what failed may or may not be there
    assert fleet.call("POST", "/engines/bob/stop").status_code == 200
    assert verify(tmp_path / "data").verdict in {"clean", "torn"}


def test_a_sync_that_hangs_delays_changes_and_nothing_else(fleet: Fleet, tmp_path: Path) -> None:
    """While the disk takes a second over one sync, admits are answered as ever."""
    log, pid = tmp_path / "trace", fleet.server.process.pid
    hang = "inject=fdatasync:delay_enter=1000000:when=1"
    with (
        traced(pid, log, "-e", WATCHED, "-e", hang),
        ThreadPoolExecutor(1) as other,
    ):
        stopping = other.submit(fleet.call, "POST", "/engines/ann/stop")
        took = []
        while not stopping.done():
            began = time.monotonic()
            assert fleet.admit("bob")["admitted"]
            took.append(time.monotonic() - began)
        assert stopping.result().status_code == 200
    slowest = max(took)
    sys.stdout.write(f"{len(took)} admits beside a sync of 1 s, the slowest {slowest:.3f} s\n")
    assert len(took) > 50
    assert slowest < 0.5
