"""Writing and reading back: what was answered is there again, in order, with its number."""

import gc
import os
import threading
from itertools import islice

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enginegate.journal import Journal
from enginegate.journal.payloads import MAX_FACT_BYTES, encode_fact
from tests.journal.rig import (
    KEY,
    SEGMENT_BYTES,
    FaultyStorage,
    ManualClock,
    begun,
    booted,
    crash,
    destroyed,
    engine,
    grow,
    no_check,
    note,
    opened,
    product,
    provisioned,
    segments,
    snapshots,
    tail_of,
)

FACTS = st.one_of(
    st.builds(provisioned, st.integers(0, 500)),
    st.builds(booted, st.integers(0, 500)),
    st.builds(destroyed, st.integers(0, 500)),
    st.builds(note, st.integers(0, 500), size=st.integers(0, 3000)),
)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(runs=st.lists(st.lists(st.lists(FACTS, min_size=1, max_size=8), max_size=6), max_size=4))
def test_what_was_appended_is_replayed(runs, tmp_path_factory):
    """Any batches over any number of starts come back whole, in order, numbered from 1."""
    directory = tmp_path_factory.mktemp("law") / "data"
    written = []
    for batches in runs:
        with begun(directory) as journal:
            assert journal.next_number == len(written) + 1
            for batch in batches:
                assert journal.append(batch) == len(written) + 1
                written += batch
    with opened(directory) as journal:
        assert [fact for _, fact in reversed(list(journal.history()))] == written
        last = [fact for batch in runs[-1] for fact in batch] if runs else []
        assert [fact for _, fact in journal.tail] == last
        assert [number for number, _ in journal.tail] == list(
            range(len(written) - len(last) + 1, len(written) + 1)
        )


def test_a_missing_directory_is_a_fresh_journal(tmp_path):
    """A directory that is not there is made, with an instance of its own and epoch 1."""
    with begun(tmp_path / "a" / "data") as journal:
        assert journal.fresh
        assert journal.epoch == 1
        assert (journal.snapshot, journal.tail, journal.next_number) == ([], [], 1)
        instance = journal.instance
    with opened(tmp_path / "a" / "data") as again:
        assert not again.fresh
        assert (again.instance, again.epoch) == (instance, 2)


def test_a_crash_loses_nothing_that_was_appended(tmp_path):
    """A process that dies without a word leaves every appended fact."""
    with begun(tmp_path / "data", [product()]) as journal:
        journal.append([provisioned(1), booted(1)])
        journal.append([destroyed(1)])
        crash(journal)
    with opened(tmp_path / "data") as again:
        assert again.snapshot == [product()]
        assert again.tail == [(1, provisioned(1)), (2, booted(1)), (3, destroyed(1))]
        again.release_replay()
        assert (again.snapshot, again.tail) == ([], [])


def test_opening_writes_nothing_but_the_lock(tmp_path):
    """A start that stops before `begin` leaves the files as they were."""
    with begun(tmp_path / "data") as journal:
        journal.append([booted()])
        crash(journal)
    before = {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    with opened(tmp_path / "data"):
        pass
    after = {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    assert before == after


def test_every_start_writes_new_files(tmp_path):
    """Nothing is ever appended to a file of an earlier process."""
    with begun(tmp_path / "data") as journal:
        journal.append([booted(1)])
        crash(journal)
    old = segments(tmp_path / "data")[0]
    used = old.read_bytes().rstrip(b"\0")
    with begun(tmp_path / "data") as journal:
        journal.append([booted(2)])
    assert old.read_bytes() == used
    assert len(segments(tmp_path / "data")) == 2


def test_a_new_start_gives_back_unused_room(tmp_path):
    """An old segment shrinks to what it holds once a later one proves its end."""
    with begun(tmp_path / "data"):
        pass
    assert segments(tmp_path / "data")[0].stat().st_size == SEGMENT_BYTES
    with begun(tmp_path / "data"):
        pass
    old, new = segments(tmp_path / "data")
    assert old.stat().st_size < 1024
    assert new.stat().st_size == SEGMENT_BYTES


def test_room_that_cannot_be_given_back_does_no_harm(tmp_path):
    """Where shrinking an old segment fails, the start goes on."""
    with begun(tmp_path / "data") as journal:
        journal.append([booted(1)])
        crash(journal)
    storage = FaultyStorage()
    storage.faults["truncate"] = 5
    with begun(tmp_path / "data", storage=storage) as journal:
        journal.append([booted(2)])
    assert [fact for _, fact in tail_of(tmp_path / "data")] == [booted(2)]


def test_one_batch_is_one_frame_and_one_sync(tmp_path):
    """However many facts a batch has, it costs one write and one sync."""
    storage = FaultyStorage()
    with begun(tmp_path / "data", storage=storage) as journal:
        storage.asked.clear()
        sequence = journal.sequence
        journal.append([booted(index) for index in range(50)])
        assert storage.asked == ["pwrite", "fdatasync"]
        assert journal.sequence == sequence + 1


def test_a_batch_over_four_mebibytes_becomes_several_frames(tmp_path):
    """A batch too large for a frame is cut, and comes back whole."""
    facts = [note(index, size=900_000) for index in range(12)]
    with begun(tmp_path / "data") as journal:
        sequence = journal.sequence
        assert journal.append(facts) == 1
        assert journal.sequence > sequence + 2
        assert journal.next_number == 13
    assert [fact for _, fact in tail_of(tmp_path / "data")] == facts


def test_a_fact_too_large_for_a_frame_is_refused(tmp_path):
    """A fact over the cap raises before anything of its batch is written."""
    with begun(tmp_path / "data") as journal:
        with pytest.raises(ValueError, match="does not fit"):
            journal.append([booted(), note(size=MAX_FACT_BYTES)])
        assert journal.next_number == 1
        assert journal.append([]) == 1
        assert journal.append([encode_fact(booted())]) == 1


def test_a_full_segment_is_followed_by_the_next(tmp_path):
    """Facts go on in a new segment when one is full, without a gap."""
    with begun(tmp_path / "data") as journal:
        for index in range(40):
            journal.append([note(index, size=2000)])
        crash(journal)
    assert len(segments(tmp_path / "data")) > 3
    assert [number for number, _ in tail_of(tmp_path / "data")] == list(range(1, 41))


def test_a_write_that_takes_only_a_part_is_continued(tmp_path):
    """Short writes are no error: the rest is written where it belongs."""
    storage = FaultyStorage()
    storage.short = 7
    with begun(tmp_path / "data", storage=storage) as journal:
        journal.append([booted(1)])
    assert tail_of(tmp_path / "data") == [(1, booted(1))]


def test_files_and_directories_are_ours_alone(tmp_path):
    """Directory 0700, files 0600, whatever the umask says."""
    old = os.umask(0)
    try:
        with begun(tmp_path / "data", [engine()]) as journal:
            journal.append([booted()])
    finally:
        os.umask(old)
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "data").iterdir()}
    assert modes == {0o600}


def test_a_slow_sync_is_told(tmp_path, caplog):
    """A sync over a second is warned about, and every sync is measured."""
    clock = ManualClock()
    seen = []
    with begun(tmp_path / "data", clock=clock) as journal:
        journal.on_sync = lambda seconds, size: seen.append((seconds, size))
        before = journal.bytes_written
        clock.step = 2.0
        journal.append([booted()])
        assert seen == [(2.0, journal.bytes_written - before)]
    assert "too slow" in caplog.text


def test_a_seal_protects_the_last_fact_once(tmp_path):
    """A seal is one empty frame after the last fact; a second one would add nothing."""
    with begun(tmp_path / "data") as journal:
        assert not journal.sealable
        journal.append([booted()])
        sequence = journal.sequence
        journal.seal()
        journal.seal()
        assert journal.sequence == sequence + 1
        crash(journal)
    assert tail_of(tmp_path / "data") == [(1, booted())]


def test_closing_seals_and_may_be_repeated(tmp_path):
    """Close is idempotent; what was last appended is sealed by it."""
    journal = Journal.open(tmp_path / "data", key_id=KEY, check=no_check)
    journal.begin([])
    journal.append([booted()])
    sequence = journal.sequence
    journal.close()
    journal.close()
    with opened(tmp_path / "data") as again:
        assert again.sequence == sequence + 1


def test_live_snapshot(tmp_path):
    """A snapshot of the state at a rotation, written while facts go on, is what a start takes."""
    with begun(tmp_path / "data") as journal:
        journal.append([provisioned(1), booted(1)])
        at = journal.rotate()
        journal.append([destroyed(1)])
        journal.write_snapshot([engine(1)], state_at=at)
        assert journal.append([booted(2)]) == 4
        crash(journal)
    with opened(tmp_path / "data") as again:
        assert again.snapshot == [engine(1)]
        assert again.tail == [(3, destroyed(1)), (4, booted(2))]


def test_a_snapshot_is_due_by_bytes(tmp_path):
    """A snapshot is wanted once replay has more to read than a floor."""
    with begun(tmp_path / "data", snapshot_after_bytes=5000) as journal:
        assert not journal.should_snapshot
        for index in range(5):
            journal.append([note(index, size=2000)])
        assert journal.should_snapshot
        journal.write_snapshot([], state_at=journal.rotate())
        assert not journal.should_snapshot


def test_a_snapshot_is_due_when_the_tail_is_half_as_long(tmp_path):
    """Not before, however low the floor, and no later than that."""
    with begun(
        tmp_path / "data", [engine(n) for n in range(200)], snapshot_after_bytes=1
    ) as journal:
        (snapshot,) = (tmp_path / "data").glob("*.egs")
        begun_at, number = journal.bytes_written, 0
        while not journal.should_snapshot:
            journal.append([note(number, size=2000)])
            number += 1
        tail, size = journal.bytes_written - begun_at, snapshot.stat().st_size
        assert size / 2 - 5000 < tail < size / 2 + 5000


def test_a_large_snapshot_comes_back_in_order(tmp_path):
    """More records than one slice holds come back as they were given."""
    records = [product(), *(engine(index) for index in range(2500))]
    with begun(tmp_path / "data", records):
        pass
    with opened(tmp_path / "data") as again:
        assert again.snapshot == records


def test_leftovers_of_a_crash_are_cleared_away(tmp_path):
    """Files that never got their real name are removed by the next start; others are left alone."""
    with begun(tmp_path / "data"):
        pass
    (tmp_path / "data" / "snap-00000002-0000000000000001.egs.tmp").write_bytes(b"half")
    (tmp_path / "data" / "notes.txt").write_bytes(b"mine")
    (tmp_path / "data" / "wal-1-1.egs").write_bytes(b"odd")
    with begun(tmp_path / "data"):
        pass
    names = {path.name for path in (tmp_path / "data").iterdir()}
    assert not any(name.endswith(".tmp") for name in names)
    assert {"notes.txt", "wal-1-1.egs"} <= names


# --- generations, archive, history -------------------------------------------------------------


def test_three_generations_are_kept(tmp_path):
    """Three snapshots stay; segments before them stay too, as the audit archive."""
    grow(tmp_path / "data", 6, ManualClock())
    assert len(snapshots(tmp_path / "data")) == 3
    assert len(segments(tmp_path / "data")) == 6


@pytest.mark.parametrize(
    ("days", "max_mb", "left"),
    [(100, 100, 7), (3.5, 100, 5), (0, 100, 3), (100, 0.0, 3)],
)
def test_the_archive_is_limited_by_age_and_size(tmp_path, days, max_mb, left):
    """Old segments go, oldest first, but never one that a kept generation needs."""
    clock = ManualClock()
    grow(tmp_path / "data", 6, clock)
    with begun(tmp_path / "data", [product()], clock=clock) as journal:
        assert journal.archive.oldest_number == 1
        removed = journal.retain(days=days, max_mb=max_mb)
        assert len(segments(tmp_path / "data")) == left
        assert removed == 7 - left
        numbers = [number for number, _ in journal.history()]
        assert numbers == list(range(6, 7 - left, -1))
        assert journal.archive.oldest_number == numbers[-1]


def test_the_archive_shrinks_only_as_far_as_needed(tmp_path):
    """A size limit removes just enough segments to be under it."""
    grow(tmp_path / "data", 6, ManualClock())
    with begun(tmp_path / "data", [product()]) as journal:
        files = segments(tmp_path / "data")
        kept = files[2:] + snapshots(tmp_path / "data")
        size = sum(path.stat().st_size for path in kept) + 10
        assert journal.retain(days=100_000, max_mb=size / 1024 / 1024) == 2
        assert segments(tmp_path / "data") == files[2:]


def test_nothing_is_removed_before_there_is_a_snapshot(tmp_path):
    """Retention on a directory without snapshots removes nothing."""
    with opened(tmp_path / "data") as journal:
        assert journal.retain(days=0, max_mb=0) == 0


def test_history_is_newest_first_over_all_segments(tmp_path):
    """History spans archived, old and current segments and stops below `before`."""
    clock = ManualClock()
    grow(tmp_path / "data", 5, clock)
    with begun(tmp_path / "data", [product()]) as journal:
        journal.append([note(5), note(6)])
        journal.append([note(7)])
        found = list(journal.history())
        assert [number for number, _ in found] == [8, 7, 6, 5, 4, 3, 2, 1]
        assert [fact.metadata["n"] for _, fact in found] == [7, 6, 5, 4, 3, 2, 1, 0]
        assert [number for number, _ in journal.history(before=7)] == [6, 5, 4, 3, 2, 1]
        assert [number for number, _ in islice(journal.history(before=3), 1)] == [2]
        assert list(journal.history(before=1)) == []


def test_segments_that_cannot_name_whom_one_asks_for_are_not_read_again(tmp_path):
    """The first reader finds out; whoever is named in none costs nothing after that."""
    storage = FaultyStorage()
    for index in range(3):
        with begun(tmp_path / "data", [product()]) as journal:
            journal.append([provisioned(index), note(index)])
    with begun(tmp_path / "data", [product()], storage=storage) as journal:
        journal.append([provisioned(3)])

        def asked_for(*naming: str) -> tuple[list[str], int]:
            """Return the users found, and how many segments were read for it."""
            storage.asked.clear()
            users = [getattr(fact, "user_id", "") for _, fact in journal.history(naming=naming)]
            return [user for user in users if user in naming], storage.asked.count("open")

        assert asked_for("nobody")[0] == []
        assert asked_for("user-1") == (["user-1"], 2)  # its own, and the one being written
        assert asked_for("nobody") == ([], 1)
        assert asked_for("user-3") == (["user-3"], 1)
        assert asked_for("user-1", "user-2") == ([], 1)
        assert asked_for("user-1", "engine-1") == (["user-1"], 2)
        assert len(list(journal.history())) == 7


def test_a_segment_that_goes_takes_what_is_known_of_it(tmp_path):
    """Retention forgets; a reader who left early has found nothing out."""
    clock = ManualClock()
    grow(tmp_path / "data", 5, clock)
    with begun(tmp_path / "data", [product()], clock=clock) as journal:
        next(journal.history())
        assert [number for number, _ in journal.history(naming=["p1"])] == [5, 4, 3, 2, 1]
        assert list(journal.history(naming=["p1"])) == []
        journal.retain(days=0, max_mb=0)
        assert [number for number, _ in journal.history()] == [5, 4]


def test_history_goes_on_while_facts_are_appended(tmp_path):
    """A reader beside a writer sees a contiguous run of durable facts, never an error."""
    with begun(tmp_path / "data") as journal:
        journal.append([note(0)])
        stop = threading.Event()

        def write() -> None:
            for index in range(200):
                journal.append([note(index, size=200)])
            stop.set()

        writer = threading.Thread(target=write)
        writer.start()
        while not stop.is_set():
            numbers = [number for number, _ in journal.history()]
            assert numbers == list(range(numbers[0], 0, -1))
        writer.join()


def test_replay_leaves_the_garbage_collector_as_it_was(tmp_path):
    """The collector rests during replay and is on, or off, afterwards as it was before."""
    with begun(tmp_path / "data"):
        assert gc.isenabled()
    gc.disable()
    try:
        with opened(tmp_path / "data"):
            assert not gc.isenabled()
    finally:
        gc.enable()
