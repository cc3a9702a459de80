"""The audit trail out of damaged files: what can be read is told, what is missing is said once."""

from pathlib import Path

import pytest
from msgspec import Raw, msgpack

from enginegate.journal import Journal, frames
from enginegate.journal.archive import Archive
from enginegate.journal.frames import Link
from enginegate.journal.names import Names
from enginegate.journal.payloads import encode_facts
from tests.journal.rig import (
    FaultyStorage,
    ManualClock,
    begun,
    crash,
    grow,
    note,
    opened,
    product,
    provisioned,
    segments,
)


@pytest.mark.parametrize("count", [0, 1, 20, 1000, 20_000, 100_000])
def test_what_a_segment_names_is_kept_in_proportion(count):
    """Few names take little room; none is missed, and hardly one is taken for another."""
    names = Names({f"user-{number}" for number in range(count)})
    assert all(names.may_have([f"user-{number}"]) for number in range(count))
    assert len(names._bits) <= max(128, 4 * count)
    wrong = sum(names.may_have([f"other-{number}"]) for number in range(20_000))
    assert wrong / 20_000 < 1 / 50


def numbers_of(journal: Journal, **asked: object) -> list[int]:
    return [number for number, _ in journal.history(**asked)]  # type: ignore[arg-type]


def spoil_header(path: Path) -> None:
    path.write_bytes(b"nonsense" + path.read_bytes()[8:])


def unlink(path: Path) -> None:
    path.unlink()


def become_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def newer_header(path: Path) -> None:
    path.write_bytes(frames.encode(frames.FILE, msgpack.encode({"reader": 99}), Link(0, 0, 0))[0])


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("spoil", [spoil_header, unlink, become_a_directory, newer_header])
@pytest.mark.parametrize("lost", [1, 2, 3, 4])
def test_a_segment_that_cannot_be_read_hides_no_other(tmp_path, caplog, spoil, lost, known):
    """Only its own entries are missing from the history; the log says so once, not at each look."""
    grow(tmp_path / "data", 5, ManualClock())
    spoilt = segments(tmp_path / "data")[lost - 1]
    with opened(tmp_path / "data") as journal:
        if known:  # its header is not read again
            assert numbers_of(journal) == [5, 4, 3, 2, 1]
        spoil(spoilt)
        expected = [number for number in (5, 4, 3, 2, 1) if number != lost]
        for _ in range(3):
            assert numbers_of(journal) == expected
        assert numbers_of(journal, before=4) == [number for number in expected if number < 4]
        journal.archive.look()
        oldest = 1 if lost > 1 or known else 0
        assert journal.archive.oldest_number == (2 if (spoil, lost) == (unlink, 1) else oldest)
    told = [one.message for one in caplog.records if "history" in one.message]
    # Retention removes the oldest beside a reader; where one between others is gone, that is loss.
    assert len(told) == (0 if spoil is unlink and lost == 1 else 1)
    assert all(spoilt.name in line or "broken or missing" in line for line in told)


def test_damage_inside_a_segment_hides_only_what_follows_in_it(tmp_path, caplog):
    """The frames before it and all other segments are told, the log says once what is missing."""
    for start in range(3):
        with begun(tmp_path / "data", [product()]) as journal:
            for one in range(3):
                journal.append([note(3 * start + one, size=100)])
    spoilt = segments(tmp_path / "data")[1]
    content = bytearray(spoilt.read_bytes())
    content[content.index(b"x" * 100, content.index(b"x" * 100) + 100)] ^= 1
    with opened(tmp_path / "data") as journal:
        whole = spoilt.read_bytes()
        spoilt.write_bytes(content)
        for _ in range(3):
            assert numbers_of(journal) == [9, 8, 7, 4, 3, 2, 1]
        told = [one.message for one in caplog.records if "history" in one.message]
        assert len(told) == 1
        assert f"{spoilt}: frame" in told[0]
        spoilt.write_bytes(whole)
        assert numbers_of(journal) == list(range(9, 0, -1))


def test_names_are_kept_only_of_what_was_read_whole(tmp_path):
    """A segment that was damaged when it was first read is found again once it is mended."""
    for start in range(3):
        with begun(tmp_path / "data", [product()]) as journal:
            journal.append([provisioned(start)])
    spoilt = segments(tmp_path / "data")[1]
    whole = spoilt.read_bytes()
    with opened(tmp_path / "data") as journal:
        assert numbers_of(journal, before=2) == [1]  # the headers of all are known now
        spoilt.write_bytes(whole[:-100].ljust(len(whole), b"\0"))
        assert numbers_of(journal, naming=["user-1"]) == [3]
        spoilt.write_bytes(whole)
        assert numbers_of(journal, naming=["user-1"]) == [3, 2]


def test_what_a_later_segment_does_not_continue_is_not_told(tmp_path):
    """Frames that the next segment's name says were dropped stay so, also if its header is bad."""
    with begun(tmp_path / "data", [product()]) as journal:
        journal.append([note(1)])
        journal.append([note(2)])
        crash(journal)
    first = segments(tmp_path / "data")[0]
    whole = first.read_bytes()
    first.write_bytes(whole.rstrip(b"\0")[:-20].ljust(len(whole), b"\0"))
    with begun(tmp_path / "data", [product()]) as journal:
        journal.append([note(3)])
    with begun(tmp_path / "data", [product()]) as journal:
        journal.append([note(4)])
    with opened(tmp_path / "data") as journal:
        first.write_bytes(whole)
        spoil_header(segments(tmp_path / "data")[1])
        assert numbers_of(journal) == [3, 1]


def test_retention_by_age_goes_on_past_a_damaged_segment(tmp_path):
    """How old a segment's facts are is also known from a later one than the next."""
    clock = ManualClock()
    grow(tmp_path / "data", 6, clock)
    with begun(tmp_path / "data", [product()], clock=clock) as journal:
        spoil_header(segments(tmp_path / "data")[1])
        assert journal.retain(days=3.5, max_mb=100) == 2
        assert journal.retain(days=0, max_mb=100) == 2
        assert numbers_of(journal) == [6, 5]


def test_history_passes_over_what_it_cannot_read(tmp_path, caplog):
    """A frame of a newer version is left out of the history, and so is an unreadable file."""
    with begun(tmp_path / "data") as journal:
        journal.append([note(1)])
        payload = encode_facts(2, [Raw(msgpack.encode({"t": "engine.teleported"}))])
        journal._write(frames.FACTS, payload, count=1)
        journal.append([note(3)])
        for _ in range(2):
            assert numbers_of(journal) == [3, 1]
        assert caplog.text.count("engine.teleported") == 1
        crash(journal)
    storage = FaultyStorage()
    storage.faults["open"] = 13
    assert list(Archive(storage, tmp_path / "data").history(10)) == []
    assert "cannot be read" in caplog.text
