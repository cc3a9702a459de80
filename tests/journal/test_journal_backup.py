"""Copies of a journal, of a living one too: whole, for us alone, and told when they are not."""

import errno
import os
import resource
import shutil
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from enginegate.errors import JournalError
from enginegate.journal import JournalFull, OsStorage, backup, verify
from tests.journal.rig import (
    SEGMENT_BYTES,
    FaultyStorage,
    begun,
    booted,
    crash,
    note,
    opened,
    product,
    segments,
    snapshots,
    tail_of,
)


def made(directory: Path) -> Path:
    with begun(directory, [product()]) as journal:
        journal.append([booted()])
        journal.write_snapshot([product()], state_at=journal.rotate())
        journal.append([booted(1)])
    return directory


def test_a_copy_is_whole_and_starts(tmp_path):
    """Snapshots and segments, 0700 and 0600, nothing else; a start on the copy has everything."""
    data = made(tmp_path / "data")
    (data / "engines").mkdir()
    (data / "master.key").write_text("secret")
    report = backup(data, tmp_path / "copies" / "monday")
    assert (report.verdict, report.facts, report.segments, report.snapshots) == ("clean", 2, 2, 2)
    copies = list((tmp_path / "copies" / "monday").iterdir())
    assert {path.name for path in copies} == {
        path.name for path in [*segments(data), *snapshots(data)]
    }
    assert (tmp_path / "copies" / "monday").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in copies} == {0o600}
    assert tail_of(tmp_path / "copies" / "monday") == tail_of(data)


def test_a_copy_goes_into_a_new_or_empty_directory(tmp_path):
    """Nothing is overwritten, and what is no directory is told."""
    data = made(tmp_path / "data")
    (tmp_path / "empty").mkdir(mode=0o755)
    assert backup(data, tmp_path / "empty").verdict == "clean"
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o700
    with pytest.raises(JournalError, match="new or empty") as caught:
        backup(data, tmp_path / "empty")
    assert caught.value.exit_code == 78
    (tmp_path / "full" / "of").mkdir(parents=True)
    (tmp_path / "full").chmod(0o755)
    with pytest.raises(JournalError, match="new or empty"):
        backup(data, tmp_path / "full")
    assert (tmp_path / "full").stat().st_mode & 0o777 == 0o755
    (tmp_path / "file").touch()
    with pytest.raises(JournalError, match="cannot be made there"):
        backup(data, tmp_path / "file")
    with pytest.raises(JournalError, match="there is no journal"):
        backup(tmp_path, tmp_path / "other")


def test_an_empty_directory_that_cannot_be_closed_to_others_is_not_used(tmp_path, monkeypatch):
    """It is of another user: told in one line with exit code 78, and left as it is."""
    data = made(tmp_path / "data")
    (tmp_path / "empty").mkdir(mode=0o755)

    def refuse(path: Path, mode: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    with pytest.raises(JournalError, match="cannot be made there: Operation not") as caught:
        backup(data, tmp_path / "empty")
    assert (caught.value.path, caught.value.exit_code) == (str(tmp_path / "empty"), 78)
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_journal_that_is_gone_is_not_backed_up_as_nothing(tmp_path):
    """What shows that there was one makes it a loss, exit code 65; no directory is 78."""
    data = made(tmp_path / "data")
    for path in [*segments(data), *snapshots(data)]:
        path.unlink()
    with pytest.raises(JournalError, match="the journal is gone") as caught:
        backup(data, tmp_path / "copy")
    assert caught.value.exit_code == 65
    with pytest.raises(JournalError, match="cannot be used") as caught:
        backup(tmp_path / "missing", tmp_path / "copy")
    assert caught.value.exit_code == 78
    assert not (tmp_path / "copy").exists()


def aged(directory: Path) -> Path:
    """Make a journal with an archived segment and three generations."""
    for number in range(4):
        with begun(directory, [product()]) as journal:
            journal.append([booted(number)])
    assert (len(segments(directory)), len(snapshots(directory))) == (4, 3)
    return directory


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[60] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("kind", [segments, snapshots])
def test_old_damage_is_copied_as_it_is_and_told(tmp_path, kind, held):
    """An archived segment or an older snapshot stops no backup, also beside a running server."""
    data = aged(tmp_path / "data")
    spoilt = kind(data)[0]
    with opened(data) as journal:
        spoil(spoilt)
        if not held:
            journal.close()
        report = backup(data, tmp_path / "copy")
    assert (report.verdict, report.exit_code, report.starts) == ("damage", 2, True)
    assert [fault.path for fault in report.faults] == [str(spoilt)]
    assert (tmp_path / "copy" / spoilt.name).read_bytes() == spoilt.read_bytes()
    assert tail_of(tmp_path / "copy") == tail_of(data) == [(4, booted(3))]


@pytest.mark.parametrize("operation", ["open", "pread"])
def test_an_old_file_that_cannot_be_read_is_left_out_and_told(tmp_path, operation):
    """A bad sector under the archive or an older snapshot does not cost the rest its backup."""
    data = aged(tmp_path / "data")
    for lost in (segments(data)[0], snapshots(data)[0], segments(data)[1]):
        storage = Unreadable(operation, lost)
        report = backup(data, tmp_path / lost.name, storage=storage)
        assert (report.verdict, report.starts, report.files) == ("damage", True, 6)
        assert str(report.faults[0]) == f"cannot be read: EIO ({lost})"
        assert not (tmp_path / lost.name / lost.name).exists()
        assert tail_of(tmp_path / lost.name) == tail_of(data)


@pytest.mark.parametrize("operation", ["open", "pread"])
def test_a_needed_file_that_cannot_be_read_leaves_no_copy(tmp_path, operation):
    """Without the newest segment the copy would start, and lack what was answered."""
    data = aged(tmp_path / "data")
    before, _ = segments(data)[-1], snapshots(data)[-1].unlink()
    storage = Unreadable(operation, before)
    with pytest.raises(JournalError, match="no backup was made: cannot be read: EIO") as caught:
        backup(data, tmp_path / "copy", storage=storage)
    assert (caught.value.path, caught.value.exit_code) == (str(before), 65)
    for path in segments(data):
        path.unlink()
    (snapshot, _) = snapshots(data)
    snapshots(data)[1].unlink()
    with pytest.raises(JournalError, match="no backup was made"):
        backup(data, tmp_path / "copy", storage=Unreadable(operation, snapshot))
    assert not (tmp_path / "copy").exists()


def test_a_copy_that_fails_leaves_nothing_behind(tmp_path):
    """Not a file, not the directories that were made for it; those that were there stay."""
    data = made(tmp_path / "data")
    storage = FaultyStorage()
    storage.faults["rename"], storage.only = errno.ENOSPC, segments(data)[-1].name
    with pytest.raises(JournalFull):
        backup(data, tmp_path / "copies" / "monday", storage=storage)
    assert not (tmp_path / "copies").exists()
    (tmp_path / "copies").mkdir()
    with pytest.raises(JournalFull):
        backup(data, tmp_path / "copies", storage=storage)
    assert list((tmp_path / "copies").iterdir()) == []
    too_long = tmp_path / "made" / ("n" * 300)
    with pytest.raises(JournalError, match="cannot be made there"):
        backup(data, too_long)
    assert not (tmp_path / "made").exists()


def test_a_journal_that_is_written_meanwhile_is_copied_as_of_some_moment(tmp_path):
    """Rotations, snapshots and retention go on; all that was answered before is in the copy."""
    data, stop, answered = tmp_path / "data", threading.Event(), [0]
    with begun(data, [product()]) as journal:

        def write() -> None:
            while not stop.is_set():
                answered[0] = journal.append([note(answered[0], size=300)])
                if answered[0] % 60 == 0:
                    journal.write_snapshot([product()], state_at=journal.rotate())
                    journal.retain(days=1000, max_mb=0.1)

        writing = threading.Thread(target=write)
        writing.start()
        try:
            for number in range(20):
                known = answered[0]
                copy = tmp_path / f"copy-{number}"
                assert backup(data, copy).verdict == "clean"
                with opened(copy) as copied:
                    newest = next(iter(copied.history()), (0, None))[0]
                assert newest >= known
        finally:
            stop.set()
            writing.join()


def test_a_frame_on_its_way_is_left_out(tmp_path):
    """A torn end is no part of the copy, which is clean; what is damaged is not copied."""
    data = made(tmp_path / "data")
    last = segments(data)[-1]
    used = len(last.read_bytes().rstrip(b"\0"))
    content = last.read_bytes()
    last.write_bytes(content[: used - 20].ljust(len(content), b"\0"))
    assert verify(data).verdict == "torn"
    report = backup(data, tmp_path / "copy")
    assert report.verdict == "clean"
    last.write_bytes(content[:40] + b"?" + content[41:])
    with pytest.raises(JournalError, match="no backup was made: damaged"):
        backup(data, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_what_a_newer_version_wrote_is_not_guessed_at(tmp_path, monkeypatch):
    """The end of a last segment is judged only where its header can be read."""
    data = made(tmp_path / "data")
    monkeypatch.setattr("enginegate.journal.payloads.FORMAT", 0)
    with pytest.raises(JournalError, match="newer version"):
        backup(data, tmp_path / "copy")


class Unreadable(OsStorage):
    """One file lies on a bad sector: it does not open, or opens and cannot be read."""

    def __init__(self, operation: str, lost: Path) -> None:
        self.operation, self.lost = operation, lost
        self.bad: set[int] = set()

    def open(self, path: Path) -> int:
        if path == self.lost and self.operation == "open":
            raise OSError(errno.EIO, "EIO")
        fd = super().open(path)
        self.bad -= {fd}
        if path == self.lost:
            self.bad.add(fd)
        return fd

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        if fd in self.bad:
            raise OSError(errno.EIO, "EIO")
        return super().pread(fd, size, offset)

    def close(self, fd: int) -> None:
        self.bad.discard(fd)
        super().close(fd)


class Vanishing(OsStorage):
    """Files go away, as beside a running server, right after they were listed."""

    def __init__(self, doomed: list[Path]) -> None:
        self.doomed = doomed

    def open(self, path: Path) -> int:
        if path in self.doomed:
            self.doomed.remove(path)
            path.unlink()
        return super().open(path)


def test_files_that_go_away_meanwhile_are_not_missed(tmp_path):
    """A generation may be removed between listing and opening: a new listing is taken."""
    data = made(tmp_path / "data")
    storage = Vanishing([snapshots(data)[1]])
    report = backup(data, tmp_path / "copy", storage=storage)
    assert (report.verdict, report.snapshots) == ("clean", 1)


def test_a_segment_that_is_followed_meanwhile_is_copied_in_its_full_size(tmp_path):
    """It was the last when it was listed; trimmed it would look cut from outside."""
    data = tmp_path / "data"

    class Rotating(OsStorage):
        def open(self, path: Path) -> int:
            fd = super().open(path)
            if path == segments(data)[-1] and len(segments(data)) == 1:
                journal.rotate()
            return fd

    with begun(data, [product()]) as journal:
        journal.append([booted()])
        report = backup(data, tmp_path / "copy", storage=Rotating())
        assert (report.verdict, report.facts, report.segments) == ("clean", 1, 1)
        assert segments(data)[0].stat().st_size < SEGMENT_BYTES
    assert segments(tmp_path / "copy")[-1].stat().st_size == SEGMENT_BYTES
    assert len(tail_of(tmp_path / "copy")) == 1


@pytest.mark.parametrize(
    ("operation", "number", "words"),
    [("open", errno.EACCES, "cannot be read"), ("create", errno.ENOSPC, "is full")],
)
def test_a_copy_that_cannot_be_made_says_why(tmp_path, operation, number, words):
    """A file that does not open, or a disk without room."""
    data = made(tmp_path / "data")
    storage = FaultyStorage()
    storage.faults[operation] = number
    with pytest.raises((JournalError, JournalFull), match=words):
        backup(data, tmp_path / "copy", storage=storage)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
@pytest.mark.parametrize("operation", ["open", "create", "sync_directory"])
def test_too_few_files_that_may_be_open_are_not_blamed_on_the_copy(tmp_path, operation, number):
    """Exit code 1 with what helps; a file that does not open for that is not left out."""
    data = aged(tmp_path / "data")
    storage = FaultyStorage()
    storage.faults[operation], storage.only = number, "00000001"
    with pytest.raises(JournalError, match=r"no backup was made: E.FILE") as caught:
        backup(data, tmp_path / "copy", storage=storage)
    assert (caught.value.path, caught.value.exit_code) == (str(data), 1)
    assert "ulimit -n" in caught.value.hint
    assert not (tmp_path / "copy").exists()


def test_wherever_the_limit_on_open_files_strikes_it_is_what_is_told(tmp_path):
    """One more file at a time may be open: each backup is whole, or names the limit."""
    data, said, before = made(tmp_path / "data"), [], resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as leaving:
        leaving.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        null, count = leaving.enter_context(Path("/dev/null").open("rb")), len(open_files())
        while (fd := os.dup(null.fileno())) < count:  # so that none below is free
            leaving.callback(os.close, fd)
            count = len(open_files())
        os.close(fd)
        for more in range(2, 12):
            resource.setrlimit(resource.RLIMIT_NOFILE, (fd + more, before[1]))
            try:
                said.append(backup(data, tmp_path / f"copy-{more}").verdict)
            except JournalError as error:
                said.append(error.hint)
            assert len(open_files()) == count
    told = [hint for hint in said if "ulimit -n" in hint]
    assert len(told) > 1
    assert said == told + ["clean"] * (len(said) - len(told))


def open_files() -> list[str]:
    return os.listdir("/proc/self/fd")[1:]  # noqa: PTH208 - one is that of the look itself


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    """An error while reading is one of the disk, not of the copy."""

    class Broken(OsStorage):
        def pread(self, fd: int, size: int, offset: int) -> bytes:
            raise OSError(errno.EIO, "an error of the disk")

    with pytest.raises(JournalError, match="an error of the disk"):
        backup(made(tmp_path / "data"), tmp_path / "copy", storage=Broken())


def test_a_listing_that_missed_a_file_is_taken_again(tmp_path):
    """Beside a running server a first copy may lack a file that was just being made."""
    data = tmp_path / "data"

    class Blinking(OsStorage):
        listings = 0

        def names(self, directory: Path) -> list[str]:
            found = super().names(directory)
            if directory == data:
                self.listings += 1
                if self.listings == 1:
                    return [name for name in found if not name.startswith("wal-")]
            return found

    with begun(data, [product()]) as journal:
        journal.append([booted()])
        report = backup(data, tmp_path / "copy", storage=Blinking())
        assert (report.verdict, report.facts) == ("clean", 1)
        crash(journal)
    shutil.rmtree(tmp_path / "copy")
    with pytest.raises(JournalError, match="no backup was made"):  # nobody makes one just now
        backup(data, tmp_path / "copy", storage=Blinking())
