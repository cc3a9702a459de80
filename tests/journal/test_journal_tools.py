"""The offline tools: verify, dump, compact, repair."""

import errno
import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from enginegate.errors import JournalError
from enginegate.facts import AnyFact
from enginegate.journal import (
    Journal,
    JournalFailed,
    JournalFull,
    OsStorage,
    compact,
    dump,
    rekey,
    repair,
    verify,
)
from enginegate.model import SnapshotRecord
from tests.journal.rig import (
    KEY,
    SEGMENT_BYTES,
    FaultyStorage,
    begun,
    booted,
    crash,
    engine,
    note,
    opened,
    product,
    provisioned,
    segments,
    snapshots,
)


def fold(records: list[SnapshotRecord], facts: list[tuple[int, AnyFact]]) -> list[SnapshotRecord]:
    return [*records, *(engine(number) for number, _ in facts)]


@pytest.fixture
def data(tmp_path):
    """A directory with two starts and five facts."""
    with begun(tmp_path / "data", [product()]) as journal:
        journal.append([provisioned(1), booted(1)])
    with begun(tmp_path / "data", [product()]) as journal:
        journal.append([note(1, size=50)])
        journal.append([note(2, size=50), booted(2)])
        crash(journal)
    return tmp_path / "data"


def tear(directory) -> None:
    """Leave the last frame half written."""
    path = segments(directory)[-1]
    content = path.read_bytes()
    used = len(content.rstrip(b"\0"))
    path.write_bytes(content[: used - 20].ljust(len(content), b"\0"))


def rot(path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 4
    path.write_bytes(content)


def test_a_clean_directory_is_verified(data):
    """Verify counts files, frames and facts, finds nothing, changes nothing, exits 0."""
    before = {path.name: path.read_bytes() for path in data.iterdir()}
    report = verify(data, KEY)
    assert (report.verdict, report.exit_code) == ("clean", 0)
    assert (report.files, report.segments, report.snapshots) == (4, 2, 2)
    assert (report.facts, report.frames) == (5, 6)
    assert before == {path.name: path.read_bytes() for path in data.iterdir()}


def test_verify_works_on_a_copy_without_a_lock(data):
    """A read-only copy is verified; no lock file is made in it."""
    (data / "LOCK").unlink()
    assert verify(data).exit_code == 0
    assert not (data / "LOCK").exists()


def test_verify_says_who_is_using_the_directory(data):
    """A directory in use can be verified; the report names the holder."""
    with opened(data):
        assert verify(data).in_use_by == str(os.getpid())
        (data / "LOCK").unlink()
        assert verify(data).in_use_by == "unknown"
    assert verify(data).in_use_by is None


class Busy(OsStorage):
    """Something goes on beside a reader, right after each of its listings that is not left out."""

    def __init__(self, happen: Callable[[], object], *, times: int) -> None:
        self.happen, self.times, self.listings = happen, times, 0

    def names(self, directory: Path) -> list[str]:
        found = super().names(directory)
        self.listings += 1
        if self.listings <= self.times:
            self.happen()
        return found


def turn_over(journal: Journal) -> None:
    """Make so many generations that all that were kept go away."""
    for _ in range(3):
        journal.write_snapshot([product()], state_at=journal.rotate())


@pytest.mark.parametrize("happen", [Journal.rotate, turn_over])
@pytest.mark.parametrize("times", [1, 2, 3, 10])
def test_what_a_running_server_does_meanwhile_is_no_damage(data, happen, times):
    """A last segment that was followed and trimmed, snapshots that were removed: read again."""
    with begun(data, [product()]) as journal:
        journal.append([note(3)])
        report = verify(data, storage=Busy(lambda: happen(journal), times=times))
        assert (report.faults, report.starts, report.in_use_by) == ([], True, str(os.getpid()))
        assert report.facts == 6


def test_damage_beside_a_running_server_is_told_once_it_stays_the_same(data):
    """A second look finds it again, and not what was of the moment; no third one is taken."""
    with begun(data, [product()]) as journal:
        rot(segments(data)[0], 250)
        quiet = Busy(lambda: None, times=0)
        found = verify(data, storage=quiet)
        assert [fault.path for fault in found.faults] == [str(segments(data)[0])]
        once = quiet.listings
        report = verify(data, storage=Busy(lambda: turn_over(journal), times=1))
        assert report.faults == found.faults
    alone = Busy(lambda: None, times=0)
    assert verify(data, storage=alone).faults == found.faults
    assert alone.listings == once // 2


def test_a_segment_that_is_followed_while_others_are_read_costs_no_second_look(data):
    """Reading an archive takes long: a busy server begins new segments during each look at it."""

    class Rotating(OsStorage):
        looks = 0

        def open(self, path: Path) -> int:
            if path == segments(data)[0]:
                self.looks += 1
                journal.rotate()
            return super().open(path)

    with begun(data, [product()]) as journal:
        journal.append([note(3)])
        storage = Rotating()
        assert (verify(data, storage=storage).verdict, storage.looks) == ("clean", 1)


def test_a_server_that_never_rests_is_not_looked_at_for_ever(data):
    """After some looks what the last of them found is told."""
    with begun(data, [product()]) as journal:
        storage = Busy(lambda: turn_over(journal), times=100)
        assert verify(data, storage=storage).in_use_by
        assert storage.listings < 20


def test_a_start_meanwhile_is_no_damage(data):
    """Nobody held the directory when it was first looked at."""
    with ExitStack() as serving:

        def start() -> None:
            turn_over(serving.enter_context(begun(data, [product()])))

        report = verify(data, storage=Busy(start, times=1))
        assert (report.faults, report.in_use_by) == ([], str(os.getpid()))


def test_a_torn_tail_is_reported(data):
    """A torn tail is exit code 1, with file and offset; it stays where it is."""
    tear(data)
    report = verify(data)
    assert (report.verdict, report.exit_code, report.facts) == ("torn", 1, 3)
    assert report.path == str(segments(data)[-1])
    assert report.offset
    assert not (data / "quarantine").exists()


def test_damage_is_reported_with_its_place(data):
    """Damage is exit code 2, with file and offset, in archived files as well."""
    rot(segments(data)[0], 250)
    report = verify(data)
    assert (report.verdict, report.exit_code) == ("damage", 2)
    assert report.path == str(segments(data)[0])


def test_a_damaged_snapshot_is_reported_though_an_older_one_would_do(data):
    """Verify is stricter than a start: a lost generation is damage, also beside a torn tail."""
    rot(snapshots(data)[-1], 50)
    tear(data)
    report = verify(data)
    assert report.verdict == "damage"
    assert report.path == str(snapshots(data)[-1])


def test_all_damage_is_reported_and_whether_a_start_minds(data):
    """Each damaged file has its line; what a start does not need is told from what stops it."""
    compact(data, KEY, fold)
    rot(segments(data)[0], 250)
    rot(snapshots(data)[0], 50)
    report = verify(data)
    assert [fault.path for fault in report.faults] == [report.path, str(segments(data)[0])]
    assert {fault.verdict for fault in report.faults} == {"damage"}
    assert (report.path, report.starts, report.hint) == (str(snapshots(data)[0]), True, "")
    assert str(report.faults[0]).endswith(f"({snapshots(data)[0]} at offset 0)")
    assert (report.segments, report.snapshots, report.facts) == (3, 3, 3)
    rot(segments(data)[-1], 60)
    report = verify(data)
    assert [fault.path for fault in report.faults[1:]] == [
        str(segments(data)[0]),
        str(segments(data)[-1]),
    ]
    assert not report.starts
    assert "journal backup" in report.hint


def test_an_unreadable_file_is_damage_and_the_others_are_read(data):
    """Neither a snapshot nor a segment that does not open hides what is wrong with the rest."""
    storage = FaultyStorage()
    storage.faults["open"], storage.only = 5, "-00000001-"
    report = verify(data, storage=storage)
    assert [fault.message for fault in report.faults] == ["cannot be read: EIO"] * 2
    assert (report.facts, report.starts) == (3, True)


def test_verify_with_another_key_is_refused(data):
    """A directory of another master key does not pass for clean."""
    report = verify(data, "other")
    assert report.exit_code == 2
    assert "wrong master key" in report.message


def test_verify_of_nothing(tmp_path):
    """A missing directory is reported, not raised; an empty one is clean."""
    assert verify(tmp_path / "missing").exit_code == 2
    assert verify(tmp_path).exit_code == 0


def test_a_dump_hides_secrets(data):
    """Every fact is dumped with its number, oldest first, as JSON, without keys or digests."""
    lines = list(dump(data))
    assert [line["number"] for line in lines] == [1, 2, 3, 4, 5]
    assert lines[0]["fact"]["t"] == "engine.provisioned"
    assert lines[0]["fact"]["sealed_key"] == lines[0]["fact"]["key_hash"] == "***"
    assert "secret" not in json.dumps(lines)


def test_a_dump_of_what_lacks_its_end_is_refused(data):
    """Where a segment must follow the newest snapshot, its absence is told; the rest is yielded."""
    first, last = segments(data)
    last.unlink()
    content = first.read_bytes().rstrip(b"\0")
    first.write_bytes(content.ljust(SEGMENT_BYTES, b"\0"))  # as if there had been no time to trim
    seen = []
    with pytest.raises(JournalError, match="segment after the snapshot is missing") as caught:
        seen.extend(line["number"] for line in dump(data))
    assert (caught.value.exit_code, caught.value.path) == (65, str(last))
    assert seen == [1, 2]
    first.unlink()
    with pytest.raises(JournalError, match="segment after the snapshot is missing"):
        list(dump(data))


def test_a_dump_goes_on_behind_a_damaged_segment(data):
    """Whoever looks into damage wants what came after it most; what is left out is told last."""
    path = segments(data)[0]
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    path.write_bytes(content)
    seen: list[int] = []
    with pytest.raises(JournalError, match="all facts are printed but those") as refused:
        seen.extend(line["number"] for line in dump(data))
    assert seen == [3, 4, 5]
    assert (refused.value.path, refused.value.exit_code) == (str(path), 65)
    assert "journal verify" in refused.value.hint


def test_a_dump_of_a_first_start_that_made_no_snapshot_is_whole(tmp_path):
    """A segment alone is a journal: nothing says that another one must follow."""
    with begun(tmp_path / "data") as journal:
        journal.append([note(1)])
    snapshots(tmp_path / "data")[0].unlink()
    assert [line["number"] for line in dump(tmp_path / "data")] == [1]


def test_a_dump_wants_the_directory_for_itself(data):
    """A dump of a directory in use is refused with exit code 75."""
    with opened(data), pytest.raises(JournalError) as caught:
        next(dump(data))
    assert caught.value.exit_code == 75


def test_compacting_writes_a_new_generation(data):
    """Compaction folds the facts into a new snapshot; numbers go on where they were."""
    assert compact(data, KEY, fold) == []
    with opened(data) as journal:
        assert journal.snapshot == [product(), engine(3), engine(4), engine(5)]
        assert (journal.tail, journal.next_number) == ([], 6)


@pytest.mark.parametrize(("limits", "left"), [({}, 5), ({"days": 0}, 3), ({"max_mb": 0}, 3)])
def test_compacting_may_limit_the_archive(data, limits, left):
    """With limits given, compaction clears out the archive as a server would."""
    for _ in range(2):
        compact(data, KEY, fold)
    compact(data, KEY, fold, **limits)
    assert len(segments(data)) == left


def print_all(directory: Path, *_: object) -> None:
    list(dump(directory))


@pytest.mark.parametrize("tool", [compact, repair, rekey, print_all])
def test_a_tool_does_not_begin_a_journal(tmp_path, tool):
    """Where there is none it says so with exit code 78, and leaves the directory as it was."""
    (tmp_path / "notes").touch()
    with pytest.raises(JournalError, match="there is no journal in this directory") as caught:
        tool(tmp_path, KEY, fold)
    assert (caught.value.exit_code, caught.value.path) == (78, str(tmp_path))
    assert "--data-dir" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]
    (tmp_path / "ballast").touch()
    with pytest.raises(JournalError, match="the journal is gone") as caught:
        tool(tmp_path, KEY, fold)
    assert caught.value.exit_code == 65
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ballast", "notes"]


def test_a_tool_says_which_directory_it_cannot_look_into(tmp_path):
    """An error of the file system is one line with exit code 78."""
    with pytest.raises(JournalError, match="No such file") as caught:
        compact(tmp_path / "missing", KEY, fold)
    assert caught.value.exit_code == 78


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EIO])
@pytest.mark.parametrize("operation", ["create", "fsync", "rename", "sync_directory"])
@pytest.mark.parametrize("tool", [compact, repair, rekey])
def test_a_full_or_failing_disk_is_no_damage(data, tool, operation, number):
    """Exit code 1, for it may get better by trying; nobody is told to restart a server for it."""
    storage = FaultyStorage()
    storage.faults[operation] = number
    with pytest.raises((JournalFull, JournalFailed)) as caught:
        tool(data, KEY, fold, storage=storage)
    assert caught.value.exit_code == 1
    assert "enginegate" not in caught.value.hint
    tool(data, KEY, fold)
    assert verify(data).verdict == "clean"


def test_repair_drops_a_torn_tail(data):
    """Repair drops a torn tail into the quarantine and leaves a clean directory."""
    tear(data)
    (warning,) = repair(data, KEY, fold)
    assert "dropped" in warning
    assert verify(data).exit_code == 0
    assert list((data / "quarantine").iterdir())


def test_repair_drops_a_suspect_tail_only_when_told(data):
    """A suspect tail goes only with the explicit flag."""
    path = segments(data)[-1]
    rot(path, len(path.read_bytes().rstrip(b"\0")) - 30)
    with pytest.raises(JournalError, match="suspect"):
        repair(data, KEY, fold)
    repair(data, KEY, fold, drop_suspect_tail=True)
    assert verify(data).exit_code == 0
    with opened(data) as journal:
        assert journal.next_number == 4


def test_repair_does_not_touch_damage(data):
    """Damage before the tail is not repaired."""
    path = segments(data)[-1]
    rot(path, 250)
    with pytest.raises(JournalError, match="damaged"):
        repair(data, KEY, fold, drop_suspect_tail=True)


def test_an_unreadable_file_is_no_size(data):
    """Retention goes on where a file cannot be opened to be measured."""
    storage = FaultyStorage()
    with begun(data, [product()], storage=storage) as journal:
        storage.faults["open"] = 13
        assert journal.retain(days=0, max_mb=1) == 0


def test_rekey_writes_every_kept_generation_anew(data):
    """Three generations under the new key, none that wants the old one, and nothing lost."""
    rekey(data, "key-2", fold, older_key_ids=[KEY])
    assert len(snapshots(data)) == 3
    with opened(data, key_id="key-2") as journal:
        assert len(journal.snapshot) == 1 + 3
        assert [number for number, _ in journal.history()] == [5, 4, 3, 2, 1]
    with pytest.raises(JournalError, match="wrong master key"):
        rekey(data, KEY, fold)
    rekey(data, "key-2", fold, forsake_generations=True)
    assert verify(data, "key-2").verdict == "clean"
