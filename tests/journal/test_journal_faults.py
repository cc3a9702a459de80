"""When the disk or the place fails: what heals, what latches, who may open."""

import errno
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from enginegate.errors import JournalError
from enginegate.journal import Journal, JournalFailed, JournalFull, OsStorage
from enginegate.journal.mounts import filesystem_warnings
from tests.journal.rig import (
    KEY,
    SEGMENT_BYTES,
    FaultyStorage,
    ForgetfulDisk,
    PowerCutError,
    begun,
    booted,
    crash,
    engine,
    no_check,
    note,
    opened,
    product,
    segments,
    snapshots,
    tail_of,
)

# --- the place ----------------------------------------------------------------------------------


def test_a_second_opener_is_turned_away(tmp_path):
    """The second one on a directory exits 75 and names the directory and the holder's pid."""
    with opened(tmp_path / "data"):
        with pytest.raises(JournalError) as caught, opened(tmp_path / "data"):
            pass
        assert caught.value.exit_code == 75
        assert caught.value.path == str(tmp_path / "data")
        assert f"pid {os.getpid()}" in str(caught.value)
    with opened(tmp_path / "data"):
        pass


def test_a_removed_lock_file_lets_nobody_in(tmp_path):
    """The lock is on the directory: who tidies up its file does not make two writers."""
    with opened(tmp_path / "data"):
        (tmp_path / "data" / "LOCK").unlink()
        with pytest.raises(JournalError) as caught, opened(tmp_path / "data"):
            pass
        assert caught.value.exit_code == 75


def test_a_killed_holder_does_not_hold_any_more(tmp_path):
    """The lock goes with its process: after kill -9 the next start succeeds at once."""
    code = (
        "import os, signal, pathlib; from enginegate.journal import Journal;"
        f"Journal.open(pathlib.Path({str(tmp_path / 'data')!r}), key_id='k');"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=Path.cwd())
    assert done.returncode == -9
    with opened(tmp_path / "data"):
        assert (tmp_path / "data" / "LOCK").read_text() == f"{os.getpid()}\n"


def test_a_failed_open_lets_go_of_the_lock(tmp_path):
    """A start that is refused leaves the directory free for the next try."""
    with begun(tmp_path / "data"):
        pass
    with pytest.raises(JournalError), opened(tmp_path / "data", key_id="other"):
        pass
    with opened(tmp_path / "data"):
        pass


def test_a_lock_that_cannot_be_made_is_told(tmp_path):
    """Where LOCK is something else, the start ends with exit code 78."""
    (tmp_path / "data" / "LOCK").mkdir(parents=True)
    with pytest.raises(JournalError) as caught, opened(tmp_path / "data"):
        pass
    assert caught.value.exit_code == 78


def test_an_open_directory_is_closed_with_a_warning(tmp_path, caplog):
    """A directory or journal file that others may enter is tightened, and said so."""
    with begun(tmp_path / "data"):
        pass
    (tmp_path / "data").chmod(0o755)
    segments(tmp_path / "data")[0].chmod(0o644)
    with opened(tmp_path / "data") as journal:
        assert len(journal.warnings) == 2
        assert "0755" in caplog.text
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
    assert segments(tmp_path / "data")[0].stat().st_mode & 0o777 == 0o600


def test_a_directory_of_somebody_else_is_refused(tmp_path, monkeypatch):
    """A data directory that another user owns ends with exit code 78."""
    (tmp_path / "data").mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    with pytest.raises(JournalError, match="belongs to user") as caught, opened(tmp_path / "data"):
        pass
    assert caught.value.exit_code == 78


def test_a_file_in_place_of_the_directory_is_refused(tmp_path):
    """A data directory that is none ends with exit code 78."""
    (tmp_path / "data").write_text("a file")
    with pytest.raises(JournalError, match="cannot be used") as caught, opened(tmp_path / "data"):
        pass
    assert caught.value.exit_code == 78


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("tmpfs", "gone after a reboot"),
        ("nfs4", "cannot be relied on"),
        ("fuse.sshfs", "cannot be relied on"),
        ("overlay", "cannot be relied on"),
        ("ext4", None),
    ],
)
def test_file_systems_that_forget_are_warned_about(tmp_path, kind, words):
    """Memory and network file systems are named; an ordinary disk is not."""
    device = tmp_path.stat().st_dev
    table = tmp_path / "mountinfo"
    table.write_text(
        "22 1 0:99 / /other rw - proc proc rw\n"
        f"23 1 {os.major(device)}:{os.minor(device)} / / rw shared:1 - {kind} /dev/x rw\n"
    )
    warnings = filesystem_warnings(tmp_path, table)
    assert bool(warnings) == (words is not None)
    assert words is None or words in warnings[0]


def test_an_unknown_file_system_is_no_reason_to_warn(tmp_path):
    """Where the system does not tell, nothing is said."""
    assert filesystem_warnings(tmp_path, tmp_path / "missing") == []


# --- the disk is full ---------------------------------------------------------------------------


def fill(journal: Journal, *, use_reserve: bool = False) -> int:
    """Append until there is no more room for it; return how many fitted."""
    for count in range(1000):
        try:
            journal.append([note(count, size=1000)], use_reserve=use_reserve)
        except JournalFull:
            return count
    raise AssertionError


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("operation", ["allocate", "create", "rename", "fsync"])
def test_a_full_disk_heals(tmp_path, operation, number):
    """No room for the next segment: nothing is lost, reading goes on, room heals it."""
    storage = FaultyStorage()
    with begun(tmp_path / "data", storage=storage) as journal:
        storage.faults[operation] = number
        count = fill(journal)
        assert journal.status == "full"
        assert count > 5
        assert not list((tmp_path / "data").glob("*.tmp"))
        with pytest.raises(JournalFull, match="no room"):
            journal.append([booted()])
        assert len(list(journal.history())) == count
        storage.faults.clear()
        assert journal.append([booted()]) == count + 1
        assert journal.status == "ok"
        crash(journal)
    assert len(tail_of(tmp_path / "data")) == count + 1


def test_the_reserve_is_for_those_who_may_use_it(tmp_path):
    """On a full disk, facts with `use_reserve` still fit, until the reserve is used up too."""
    storage = FaultyStorage()
    with begun(tmp_path / "data", storage=storage, segment_bytes=64 * 1024) as journal:
        storage.faults["allocate"] = errno.ENOSPC
        count = fill(journal)
        assert journal.has_reserve()
        written = fill(journal, use_reserve=True)
        assert written > 2
        assert not journal.has_reserve()
        storage.faults.clear()
        journal.rotate()
        assert journal.status == "ok"
        crash(journal)
    assert len(tail_of(tmp_path / "data")) == count + written


def test_a_batch_that_half_fits_says_how_much_is_durable(tmp_path):
    """When a later frame of a large batch finds no room, the error counts what is on disk."""
    storage = FaultyStorage()
    with begun(tmp_path / "data", storage=storage, segment_bytes=5 * 1024 * 1024) as journal:
        storage.faults["allocate"] = errno.ENOSPC
        with pytest.raises(JournalFull) as caught:
            journal.append([note(index, size=900_000) for index in range(8)])
        assert caught.value.durable == journal.next_number - 1 == 4
        crash(journal)
    assert len(tail_of(tmp_path / "data")) == 4


def test_a_seal_needs_room_like_everything_else(tmp_path):
    """Where not even a seal fits, none is written."""
    with begun(tmp_path / "data") as journal:
        journal.append([booted()])
        journal._current.reserve = SEGMENT_BYTES
        sequence = journal.sequence
        journal.seal()
        assert journal.sequence == sequence


def test_a_snapshot_without_room_does_no_harm(tmp_path):
    """A live snapshot on a full disk fails alone: facts go on, the older one is kept."""
    storage = FaultyStorage()
    with begun(tmp_path / "data", [product()], storage=storage) as journal:
        at = journal.rotate()
        storage.faults["fsync"] = errno.ENOSPC
        with pytest.raises(JournalFull):
            journal.write_snapshot([engine()], state_at=at)
        assert journal.status == "ok"
        assert journal.append([booted()]) == 1
    assert len(snapshots(tmp_path / "data")) == 1


@pytest.mark.parametrize("operation", ["allocate", "create", "rename", "fsync"])
def test_a_start_without_room_leaves_what_was_there(tmp_path, operation):
    """Where not even the ballast makes room, no file of the start stays; the next one succeeds."""
    with begun(tmp_path / "data") as journal:
        journal.append([booted()])
        crash(journal)
    (tmp_path / "data" / "ballast").unlink()
    before = sorted(path.name for path in (tmp_path / "data").iterdir())
    storage = FaultyStorage()
    storage.faults[operation] = errno.ENOSPC
    with opened(tmp_path / "data", storage=storage) as journal, pytest.raises(JournalFull):
        journal.begin([])
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == before
    assert tail_of(tmp_path / "data") == [(1, booted())]


def test_a_leftover_that_cannot_be_removed_does_no_harm(tmp_path, caplog):
    """Clearing away may fail without failing the start."""
    with begun(tmp_path / "data"):
        pass
    (tmp_path / "data" / "wal-00000007-0000000000000001.egj.tmp").write_bytes(b"")
    storage = FaultyStorage()
    storage.faults["unlink"] = errno.EPERM
    with begun(tmp_path / "data", storage=storage):
        assert "stays behind" in caplog.text


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_where_we_may_not_write_a_start_again_alone_does_not_help(tmp_path, number):
    """It is for the operator to see to it first."""
    storage = FaultyStorage()
    with begun(tmp_path / "data", storage=storage) as journal:
        storage.faults["create"] = number
        with pytest.raises(JournalFailed, match="right to write there, then start again"):
            journal.rotate()


# --- the disk has failed ------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("operation", ["fdatasync", "pwrite"])
def test_a_failed_write_or_sync_is_final(tmp_path, operation, number):
    """After one failure nothing touches the file again, though the next try would succeed."""
    storage = FaultyStorage()
    with begun(tmp_path / "data", storage=storage) as journal:
        journal.append([booted(1)])
        storage.faults[operation] = number
        storage.once = True
        with pytest.raises(JournalFailed, match="Start again"):
            journal.append([booted(2)])
        assert journal.status == "failed"
        storage.asked.clear()
        with pytest.raises(JournalFailed, match="takes no more"):
            journal.append([booted(3)])
        with pytest.raises(JournalFailed):
            journal.rotate()
        journal.seal()
        assert [fact for _, fact in journal.history()] == [booted(1)]
        journal.close()
        assert not {"pwrite", "fdatasync", "fsync"} & set(storage.asked)
    found = [fact for _, fact in tail_of(tmp_path / "data")]
    assert found in ([booted(1)], [booted(1), booted(2)])


@pytest.mark.parametrize("operation", ["sync_directory", "fsync", "allocate", "rename"])
def test_a_segment_that_cannot_be_made_safely_latches(tmp_path, operation):
    """Anything but a full disk at rotation is final as well."""
    storage = FaultyStorage()
    with begun(tmp_path / "data", storage=storage) as journal:
        journal.append([booted()])
        storage.faults[operation] = errno.EIO
        with pytest.raises(JournalFailed):
            journal.rotate()
        assert journal.status == "failed"
    assert tail_of(tmp_path / "data") == [(1, booted())]


def test_a_snapshot_that_fails_latches(tmp_path):
    """A failed sync of a snapshot says that the disk cannot be trusted."""
    storage = FaultyStorage()
    with begun(tmp_path / "data", storage=storage) as journal:
        at = journal.rotate()
        storage.faults["sync_directory"] = errno.EIO
        with pytest.raises(JournalFailed):
            journal.write_snapshot([], state_at=at)
        assert journal.status == "failed"


def test_a_disk_that_takes_nothing_is_failed(tmp_path):
    """A write that takes no bytes at all does not loop for ever."""
    storage = FaultyStorage()
    with begun(tmp_path / "data", storage=storage) as journal:
        storage.short = 5
        storage.zero_writes = True
        with pytest.raises(JournalFailed, match="no more bytes"):
            journal.append([booted()])


def test_a_disk_that_reads_back_something_else_is_failed(tmp_path):
    """What was written and synced is read back; a difference refuses the start."""
    storage = FaultyStorage()
    with opened(tmp_path / "data", storage=storage) as journal:
        storage.lies = True
        with pytest.raises(JournalFailed, match="reads back differently"):
            journal.begin([])


def test_a_file_that_reads_back_short_is_failed(tmp_path, monkeypatch):
    """A file that lost bytes after its sync refuses the start."""
    storage = FaultyStorage()
    with opened(tmp_path / "data", storage=storage) as journal:
        monkeypatch.setattr(storage, "pread", lambda fd, size, offset: b"")
        with pytest.raises(JournalFailed, match="reads back differently"):
            journal.begin([])


def test_a_failing_seal_does_not_stop_the_close(tmp_path):
    """Closing gives the directory back, whatever the disk says to the last seal."""
    storage = FaultyStorage()
    journal = Journal.open(tmp_path / "data", key_id=KEY, storage=storage, check=no_check)
    journal.begin([])
    journal.append([booted()])
    storage.faults["fdatasync"] = errno.EIO
    journal.close()
    assert len(tail_of(tmp_path / "data")) == 1


def test_a_tail_that_cannot_be_kept_is_not_dropped(tmp_path):
    """Where the quarantine cannot be written, nothing begins, and nothing is cut."""
    with begun(tmp_path / "data") as journal:
        journal.append([booted()])
        crash(journal)
    path = segments(tmp_path / "data")[0]
    used = len(path.read_bytes().rstrip(b"\0"))
    path.write_bytes(path.read_bytes()[: used - 20].ljust(SEGMENT_BYTES, b"\0"))
    storage = FaultyStorage()
    storage.faults["make_directory"] = errno.ENOSPC
    with opened(tmp_path / "data", storage=storage) as journal:
        assert "not copied yet" in journal.warnings[0]
        with pytest.raises(JournalFull):
            journal.begin([])
        assert len(segments(tmp_path / "data")) == 1
        storage.faults.clear()
        journal.begin([])
        assert "a copy is" in journal.warnings[-1]
    assert len(list((tmp_path / "data" / "quarantine").iterdir())) == 1
    assert tail_of(tmp_path / "data") == []


def test_free_space_counts_inodes_and_what_is_kept_for_root(monkeypatch):
    """No inode left is no room; blocks that only root may use are free to root alone."""
    names = ["f_files", "f_ffree", "f_bavail", "f_bfree", "f_frsize"]

    def says(*values: int) -> None:
        status = SimpleNamespace(**dict(zip(names, values, strict=True)))
        monkeypatch.setattr(os, "statvfs", lambda _: status)

    free = OsStorage().free_bytes
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    says(100, 0, 5, 7, 4096)
    assert free(Path()) == 0
    says(0, 0, 5, 7, 4096)
    assert free(Path()) == 7 * 4096
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert free(Path()) == 5 * 4096


# --- the power goes -----------------------------------------------------------------------------


def live(disk: ForgetfulDisk, directory: Path, acknowledged: list[int]) -> None:
    """Live two lives on a disk, noting each fact number when its append returned."""
    for life in range(2):
        with opened(directory, storage=disk, segment_bytes=4096) as journal:
            try:
                journal.begin([product()] if life else [])
                for index in range(6):
                    size = 900 if index % 2 else 10
                    journal.append([note(journal.next_number, size=size), note(0)])
                    acknowledged.append(journal.next_number - 1)
                    if index == 3:
                        journal.write_snapshot([engine()], state_at=journal.rotate())
            except PowerCutError:
                journal.fail("power cut")
                raise


def test_power_loss_after_every_operation(tmp_path):
    """Whatever a power cut forgets of what was not synced, no acknowledged fact is lost."""
    whole = ForgetfulDisk()
    live(whole, tmp_path / "whole", [])
    images = 0
    for cut in range(whole.operations + 1):
        disk, acknowledged = ForgetfulDisk(cut), [0]
        with suppress(PowerCutError):
            live(disk, tmp_path / f"life-{cut}", acknowledged)
        for seed in range(13):
            image = tmp_path / f"image-{cut}-{seed}"
            disk.image(image, seed)
            with opened(image) as journal:
                assert journal.next_number > acknowledged[-1], (cut, seed)
                journal.begin([])
                numbers = [number for number, _ in journal.history()]
                assert numbers == list(range(journal.next_number - 1, 0, -1))
                assert journal.append([booted()]) == len(numbers) + 1
            images += 1
    assert images > 1000
