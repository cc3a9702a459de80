"""A disk that is really full: a small tmpfs under the installed command."""

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Server, eventually
from tests.faults.disks import MIB, Fleet, fill, tmpfs

HEALS_WITHIN_S = 5.0
ADMITS = 500


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """Three running engines on a file system of 32 MiB."""
    with tmpfs(tmp_path / "disk", 32) as disk:
        server = Server(disk)
        server.start()
        found = Fleet(server)
        try:
            for user in ("ann", "bob", "cid"):
                found.admit(user, auto_provision=True)
            yield found
        finally:
            (disk / "filler").unlink(missing_ok=True)
            eventually(lambda: found.journal() == "ok", "the journal is writable")
            found.http.close()
            server.close()


def refuse_changes_and_admit(fleet: Fleet) -> None:
    """See what the contract says of a full disk."""
    fleet.refused("POST", "/engines/provision", user_id="dan")
    fleet.refused("POST", "/engines/ann/rotate-key")
    fleet.refused("POST", "/engines/ann/sleep", force=True)
    fleet.refused("POST", "/engines/eve/admit", auto_provision=True)
    assert fleet.health() == {
        "status": "degraded",
        "subsystems": {"journal": "full", "backend": "ok"},
    }
    assert fleet.journal() == "full"
    assert all(fleet.admit("ann")["admitted"] for _ in range(ADMITS))


def heal(fleet: Fleet) -> None:
    """Make room; see that changes are accepted by themselves, within seconds."""
    (fleet.server.directory / "filler").unlink()
    begun = time.monotonic()
    eventually(
        lambda: fleet.call("POST", "/engines/provision", user_id="dan").status_code == 200,
        "a provision succeeds",
        seconds=HEALS_WITHIN_S,
    )
    sys.stdout.write(f"healed within {time.monotonic() - begun:.1f} s\n")
    assert fleet.health()["status"] == "ok"


def rows(fleet: Fleet) -> dict[str, str]:
    found = fleet.call("GET", "/engines").json()["engines"]
    return {row["user_id"]: row["status"] for row in found}


def test_a_full_disk_refuses_changes_serves_admits_and_heals(fleet: Fleet) -> None:
    """From the first request on: changes 503, admits 200, stop and destroy work; then it heals."""
    fill(fleet.server.directory)
    refuse_changes_and_admit(fleet)
    assert fleet.call("POST", "/engines/bob/stop").status_code == 200
    assert fleet.call("DELETE", "/engines/cid").status_code == 200
    assert rows(fleet) == {"ann": "running", "bob": "stopped"}
    fill(fleet.server.directory)
    heal(fleet)
    assert rows(fleet) == {"ann": "running", "bob": "stopped", "dan": "running"}


def test_a_change_that_failed_does_not_show_up_later(fleet: Fleet) -> None:
    """Killed on the full disk and started again: what was refused did not happen."""
    fill(fleet.server.directory)
    fleet.refused("POST", "/engines/provision", user_id="dan")
    fleet.server.stop(signal.SIGKILL)
    fleet.server.start()
    assert rows(fleet) == {"ann": "running", "bob": "running", "cid": "running"}


def test_a_start_on_a_full_disk_serves_admits_and_destroys_out_of_its_ballast(
    fleet: Fleet,
) -> None:
    """Killed on a full disk and started on it: adopted, admitted, and what makes room works."""
    before = fleet.admit("ann")["engine"]
    fill(fleet.server.directory)
    for number in range(3):
        fleet.server.stop(signal.SIGKILL)
        fill(fleet.server.directory)
        fleet.server.start()
        fill(fleet.server.directory)
        refuse_changes_and_admit(fleet)
        assert fleet.admit("ann")["engine"] == before | {
            "last_health_at": fleet.admit("ann")["engine"]["last_health_at"]
        }
        if number == 0:
            assert fleet.call("DELETE", "/engines/cid").status_code == 200
    assert rows(fleet) == {"ann": "running", "bob": "running"}
    heal(fleet)


def test_a_start_without_room_for_anything_waits_for_it(fleet: Fleet) -> None:
    """Where somebody took even the ballast's room, nothing can be changed, and admits go on."""
    fill(fleet.server.directory)
    fleet.server.stop(signal.SIGKILL)
    (fleet.server.directory / "data" / "ballast").unlink()
    fill(fleet.server.directory)
    fleet.server.start()
    refuse_changes_and_admit(fleet)
    fleet.refused("DELETE", "/engines/cid")
    assert fleet.server.stop() == 0
    fleet.server.start()
    heal(fleet)
    assert fleet.call("DELETE", "/engines/cid").status_code == 200


def test_a_tool_on_a_full_disk_tells_it_from_damage(fleet: Fleet) -> None:
    """Exit code 1 with the reason; with room again the same call does its work."""
    fill(fleet.server.directory)
    assert fleet.server.stop() == 0
    (fleet.server.directory / "data" / "ballast").unlink()
    fill(fleet.server.directory)
    for verb in ("compact", "repair"):
        said = fleet.server.cli.run("journal", verb, exits=1).stderr
        assert said.startswith("no room on disk: No space left on device ("), verb
    (fleet.server.directory / "filler").unlink()
    for verb in ("compact", "repair"):
        fleet.server.cli.run("journal", verb)
    fleet.server.start()


def test_a_disk_smaller_than_a_segment_does(tmp_path: Path) -> None:
    """On 8 MiB the segments are smaller, and two starts find their room."""
    with tmpfs(tmp_path / "disk", 8) as disk:
        server = Server(disk)
        for _ in range(2):
            server.start()
            assert server.stop() == 0
        largest = max(path.stat().st_size for path in (disk / "data").glob("wal-*"))
        assert largest == MIB
