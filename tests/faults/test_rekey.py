"""A new master key: wrong ones are refused, and a kill at any step leaves every key readable."""

import os
import random
import re
import resource
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from enginegate.clock import SystemClock
from enginegate.config import master_keys
from enginegate.facts import Noted
from enginegate.journal import Journal, rekey
from enginegate.keys import Keyring, digest_hex, new_admin_key, new_engine_key, new_master_key
from enginegate.model import Engine, PendingKey, Policy, Product, Status
from enginegate.ports import PortMap
from enginegate.registry import Registry
from enginegate.server import fold
from tests.e2e.conftest import Cli
from tests.fakes import SimulatedCrash
from tests.faults.campaign import plain
from tests.faults.traced import strace
from tests.simulation.disk import Disk, Mount

ENGINES = 3
STEPS = ("rename", "fsync", "unlink")
STRIDE = int(os.environ.get("ENGINEGATE_FAULTS_STRIDE", "8"))  # 1: every single step
REFUSED_WITHIN_S = 1.0


class Place(NamedTuple):
    """A directory with a journal of some engines, its key file, and what the keys are."""

    directory: Path
    keys: dict[str, str]

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def key_file(self) -> Path:
        return self.directory / "master.key"

    def cli(self, **variables: str) -> Cli:
        given = variables or {"ENGINEGATE_MASTER_KEY_FILE": str(self.key_file)}
        return Cli(self.directory, ENGINEGATE_ADMIN_KEY=new_admin_key(), **given)

    def ring(self) -> list[str]:
        return list(master_keys({"ENGINEGATE_MASTER_KEY_FILE": str(self.key_file)}))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Three starts, so that there are three generations; one key is in the midst of a rotation."""
    place = Place(tmp_path_factory.mktemp("made"), {})
    master = new_master_key()
    place.key_file.write_text(f"{master}\n")
    place.key_file.chmod(0o600)
    ring = Keyring([master])
    records: list[Product | Engine] = [
        Product(
            product_id="p",
            slug="p",
            display_name="P",
            policy=Policy(),
            key_hash="00" * 32,
            created_at_ms=1,
        )
    ]
    for number in range(ENGINES):
        engine_id, key, following = f"e{number}", new_engine_key(), new_engine_key()
        place.keys[engine_id] = key
        pending = PendingKey(ring.seal(engine_id, following), digest_hex(following))
        records.append(
            Engine(
                engine_id=engine_id,
                product_id="p",
                user_id=f"user{number}",
                status=Status.RUNNING if number == 0 else Status.STOPPED,
                port=9001 + number,
                engine_version="process",
                sealed_key=ring.seal(engine_id, key),
                key_hash=digest_hex(key),
                created_at_ms=1,
                changed_at_ms=1,
                pending_key=pending if number == 0 else None,
            )
        )
    for _ in range(3):
        journal = Journal.open(place.data, key_id=ring.key_id)
        journal.begin(records)
        journal.close()
    return place


@pytest.fixture
def place(made: Place, tmp_path: Path) -> Place:
    return copied(made, tmp_path / "place")


def copied(made: Place, directory: Path) -> Place:
    shutil.copytree(made.directory, directory)
    return Place(directory, made.keys)


def readable(place: Place, keys: list[str]) -> None:
    """See that these master keys start this directory and open every engine's key."""
    ring = Keyring(keys)
    journal = Journal.open(place.data, key_id=ring.key_id, older_key_ids=ring.key_ids[1:])
    registry = Registry(
        ports=PortMap(9001, 9999),
        keyring=Keyring(keys[:1]),
        clock=SystemClock(),
        url_of=lambda _: "",
        sleep_after_s=0,
    )
    registry.load(journal.snapshot, journal.tail, sealer=ring.resealer)
    journal.close()
    assert {live.engine.engine_id: live.api_key for live in registry.engines.values()} == place.keys


def test_a_key_in_a_file_is_renewed_with_one_command(place: Place) -> None:
    """A new key in the file, the old one beside it and needed by nothing that is kept."""
    [old] = place.ring()
    said = place.cli().run("rekey", "--data-dir", str(place.data))
    [new] = place.ring()
    assert new != old
    assert old not in said.stdout + said.stderr
    assert new not in said.stdout + said.stderr
    [kept] = place.directory.glob("master.key.old-*")
    assert kept.read_text() == f"{old}\n"
    assert {path.stat().st_mode & 0o777 for path in (kept, place.key_file)} == {0o600}
    readable(place, [new])
    assert len(list(place.data.glob("snap-*"))) == 3
    refused = place.cli(ENGINEGATE_MASTER_KEY=old).run(
        "journal", "compact", "--data-dir", str(place.data), exits=78
    )
    assert "wrong master key" in refused.stderr


def test_a_ring_in_the_environment_does_the_same(place: Place) -> None:
    """The new key before the old one; afterwards the first alone is enough."""
    [old], new = place.ring(), new_master_key()
    ring = {"ENGINEGATE_MASTER_KEY": f"{new},{old}"}
    said = place.cli(**ring).run("rekey", "--data-dir", str(place.data))
    assert "only the first key" in said.stderr
    readable(place, [new])
    alone = place.cli(ENGINEGATE_MASTER_KEY=new)
    assert (
        "put the new one before it"
        in alone.run("rekey", "--data-dir", str(place.data), exits=2).stderr
    )


def test_a_server_takes_a_ring_and_the_old_key_is_not_dropped_too_soon(place: Place) -> None:
    """Started with both, what is new is of the new key; the old one is wanted until it is not."""
    [old], new = place.ring(), new_master_key()
    both = place.cli(ENGINEGATE_MASTER_KEY=f"{new},{old}")
    both.run("journal", "compact", "--data-dir", str(place.data))
    readable(place, [new, old])
    alone = place.cli(ENGINEGATE_MASTER_KEY=new)
    refused = alone.run("journal", "compact", "--data-dir", str(place.data), exits=78)
    assert "an older generation still needs master key" in refused.stderr
    alone.run("rekey", "--purge-old-generations", "--data-dir", str(place.data))
    readable(place, [new])


def test_a_wrong_key_is_refused_at_once_in_one_clear_line(place: Place) -> None:
    """Which key it was made with and which was given, by name; within a second's work."""
    cli = place.cli(ENGINEGATE_MASTER_KEY=new_master_key())
    cli.env = plain(cli.env)  # as users run it: measured for coverage, the same takes twice as long
    for args in (
        ("serve", "--port", "0", "--data-dir", str(place.data)),
        ("rekey", "--purge-old-generations", "--data-dir", str(place.data)),
    ):
        before, began = spent_s(), time.monotonic()
        said = cli.run(*args, exits=78)
        took_s, worked_s = time.monotonic() - began, spent_s() - before
        line = said.stderr.splitlines()[-1]
        assert re.search(r"wrong master key: written with key \w{16}, given is \w{16}", line)
        sys.stdout.write(f"{args[0]} refused after {took_s:.2f} s, {worked_s:.2f} s of work\n")
        assert worked_s < REFUSED_WITHIN_S


def test_the_same_key_twice_is_no_new_key(place: Place) -> None:
    """Whoever has pasted the wrong line is told so, and not that all is sealed anew."""
    [old] = place.ring()
    twice = place.cli(ENGINEGATE_MASTER_KEY=f"{old},{old}")
    said = twice.run("rekey", "--data-dir", str(place.data), exits=2)
    assert "the same master key is given twice" in said.stderr
    readable(place, [old])


def spent_s() -> float:
    """Return the processor time of all commands so far: what a busy machine does not change."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_without_a_journal_nothing_is_begun_and_the_key_stays(place: Place) -> None:
    """A wrong data directory is told with exit code 78, before a new key is made."""
    [key], other = place.ring(), place.directory / "other"
    other.mkdir(mode=0o755)
    for command in (["rekey"], ["journal", "repair"], ["journal", "compact"]):
        said = place.cli().run(*command, "--data-dir", str(other), exits=78).stderr
        assert f"there is no journal in this directory ({other})" in said
        assert len(said.splitlines()) == 1
    assert list(other.iterdir()) == []
    assert other.stat().st_mode & 0o777 == 0o755
    assert place.ring() == [key]
    assert list(place.directory.glob("master.key.old-*")) == []


def test_a_key_file_that_cannot_be_written_changes_nothing(place: Place) -> None:
    """The new key is on the disk before anything is sealed with it, or nothing happens."""
    (place.directory / ".master.key.new").mkdir()
    (place.directory / ".master.key.new" / "in-the-way").touch()
    before = sorted(path.name for path in place.data.iterdir())
    said = place.cli().run("rekey", "--data-dir", str(place.data), exits=1)
    assert "cannot write" in said.stderr
    assert sorted(path.name for path in place.data.iterdir()) == before
    readable(place, place.ring())


def test_killed_at_any_step_all_keys_are_readable_and_the_same_command_goes_on(
    made: Place, tmp_path: Path
) -> None:
    """SIGKILL at the syncs, renames and removals of the real command, one run each."""
    killed = 0
    for call in STEPS:
        for step in range(1, 100, 1 if call == "rename" else STRIDE):
            place = copied(made, tmp_path / f"{call}-{step}")
            command = [sys.executable, "-m", "enginegate", "rekey", "--data-dir", str(place.data)]
            inject = ["-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={step}"]
            done = subprocess.run(
                [strace(), "-f", "-qq", "-o", "/dev/null", *inject, *command],
                env=place.cli().env,
                cwd=place.directory,
                check=False,
                capture_output=True,
            )
            if done.returncode == 0:
                break
            assert done.returncode == -9, done.stderr
            killed += 1
            readable(place, place.ring())
            last = place
    sys.stdout.write(f"{killed} kills, every key readable after each\n")
    assert killed >= 9
    last.cli().run("rekey", "--data-dir", str(last.data))
    [new] = last.ring()
    readable(last, [new])


def test_killed_at_every_operation_of_the_rewriting_nothing_is_lost(tmp_path: Path) -> None:
    """On a simulated disk, with and without the power going: old and new key open everything."""
    steps = 0
    for share in (None, 0.0, 0.5):
        for step in range(1, 200):
            disk = Disk(random.Random(step))
            journal = opened(disk.mount(), tmp_path, "old")
            journal.begin([])
            journal.append([Noted(at_ms=1, action="recovered")])
            close(journal)
            mount = disk.mount()
            mount.crash_at = step
            with suppress(SimulatedCrash):
                rekey(tmp_path, "new", fold, older_key_ids=["old"], storage=mount)
            if share is not None:
                disk.cut_power(share)
            again = opened(disk.mount(), tmp_path, "new", "old")
            assert [number for number, _ in again.history()] == [1]
            close(again)
            if not mount.dead:
                break
        steps = max(steps, step)
    assert 20 < steps < 199
    rekey(tmp_path, "new", fold, older_key_ids=["old"], storage=disk.mount())
    close(opened(disk.mount(), tmp_path, "new"))


def opened(mount: Mount, directory: Path, *keys: str) -> Journal:
    options: dict[str, Any] = {"storage": mount, "segment_bytes": 8192, "check": lambda _: []}
    return Journal.open(directory, key_id=keys[0], older_key_ids=keys[1:], **options)


def close(journal: Journal) -> None:
    """Let go of the directory as the kernel does for a killed process."""
    assert journal._lock_fd is not None
    os.close(journal._lock_fd)
    journal._lock_fd = None
