"""The damage table: what is dropped, what is refused, and that nothing is dropped silently."""

import errno
import random
import shutil
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import msgpack

from enginegate.errors import JournalError
from enginegate.journal import frames, verify
from enginegate.journal.frames import Finding, Link
from enginegate.journal.payloads import SEGMENT, FileHeader, encode_header
from tests.journal.rig import (
    SEGMENT_BYTES,
    FaultyStorage,
    begun,
    booted,
    crash,
    engine,
    note,
    opened,
    product,
    segments,
    snapshots,
    tail_of,
)

START = Link(0, 0, 0)
GENESIS = FileHeader(
    kind=SEGMENT,
    instance="one",
    epoch=1,
    sequence=1,
    number=1,
    crc=0,
    key_id="key-1",
    created_at_ms=0,
    size_bytes=4096,
    genesis=True,
)


def lay(payloads: list[bytes], *, size: int = 4096) -> tuple[bytes, list[int], list[Link]]:
    """Build a file in memory; return it, where each frame ends, and the chain after each."""
    link, parts, ends, links = START, [], [], []
    for index, payload in enumerate(payloads):
        kind = frames.FACTS if index else frames.FILE
        frame, link = frames.encode(kind, payload, link)
        parts.append(frame)
        ends.append(sum(map(len, parts)))
        links.append(link)
    data = b"".join(parts)
    return data + bytes(max(0, size - len(data))), ends, links


PAYLOADS = [b"header", b"a" * 100, b"b" * 700, b"c" * 33, b"", b"d" * 650]


def examine(data: bytes) -> tuple[int, Finding]:
    """Return how many frames are whole, and the verdict on the rest."""
    link, end, whole = START, 0, 0
    for frame in frames.walk(data, link):
        link = Link(frame.sequence, frame.crc, link.seed or frame.crc)
        end, whole = frame.end, whole + 1
    return whole, frames.judge(data, link, end).finding


# --- laws over bytes ----------------------------------------------------------------------------


def test_whole_frames_are_read_back():
    """What was laid down is what is walked over, and the end is clean."""
    data, ends, _ = lay(PAYLOADS)
    walked = list(frames.walk(data, START))
    assert [bytes(frame.payload) for frame in walked] == PAYLOADS
    assert [frame.end for frame in walked] == ends
    assert all(end % 8 == 0 for end in ends)
    assert examine(data) == (6, Finding.CLEAN)


def test_zeroed_from_any_offset_is_torn_or_clean():
    """However much of the end never arrived, the complete frames before it stay, undoubted."""
    data, ends, _ = lay(PAYLOADS)
    for cut in range(ends[0], ends[-1] + 1):
        whole, finding = examine(data[:cut] + bytes(len(data) - cut))
        assert whole == sum(end <= cut for end in ends)
        assert finding is (Finding.CLEAN if cut in ends else Finding.TORN), cut


def test_no_single_flipped_bit_loses_a_frame():
    """One flipped bit anywhere is damage or suspect, never a torn tail or a clean end."""
    data, ends, _ = lay(PAYLOADS)
    for bit in range(ends[0] * 8, ends[-1] * 8):
        rotten = bytearray(data)
        rotten[bit // 8] ^= 1 << bit % 8
        whole, finding = examine(bytes(rotten))
        assert whole == sum(end <= bit // 8 for end in ends), bit
        last = bit // 8 >= ends[-2]
        assert finding is (Finding.SUSPECT if last else Finding.DAMAGE), bit


def test_lost_sectors_of_the_last_frame_are_torn():
    """Any of a last frame's sectors may be missing after a power loss: torn, the rest stays."""
    choose = random.Random(7)
    text = bytes(choose.randrange(1, 256) for _ in range(2900))
    data, ends, _ = lay([b"header", b"a" * 300, text])
    begin, end = ends[1], ends[2]
    for _ in range(500):
        found = bytearray(data)
        for sector in range(begin // 512 * 512, end, 512):
            if choose.random() < 0.4:
                start = max(begin, sector)
                stop = min(end, sector + 512)
                found[start:stop] = bytes(stop - start)
        expected = (3, Finding.CLEAN) if found == data else (2, Finding.TORN)
        if not any(found[begin:end]):
            expected = (2, Finding.CLEAN)
        assert examine(bytes(found)) == expected


@settings(max_examples=500, deadline=None)
@given(data=st.data())
def test_random_damage_never_passes_for_data(data):
    """Whatever is written over a file, no frame is read that was not written by us."""
    content, ends, _ = lay(PAYLOADS)
    spots = data.draw(st.lists(st.integers(0, ends[-1] - 1), min_size=1, max_size=16))
    rotten = bytearray(content)
    for spot in spots:
        rotten[spot] = data.draw(st.integers(0, 255))
    walked = [bytes(frame.payload) for frame in frames.walk(bytes(rotten), START)]
    assert walked == PAYLOADS[: len(walked)]


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=3000))
def test_any_bytes_are_judged_without_an_exception(noise):
    """Noise is judged, not stumbled over."""
    examine(noise)
    examine(frames.MAGIC + noise)


def test_a_frame_inside_a_payload_is_no_frame():
    """Bytes that look like a later frame, put into a payload by a user, are not taken for one."""
    data, ends, _ = lay([b"header", b"a" * 40])
    trojan, _ = frames.encode(frames.FACTS, b"x", Link(99, 1, 0))
    hidden = b"0" * (-(ends[1] + 32) % 8) + trojan + b"z" * 20
    _, _, links = lay([b"header", b"a" * 40])
    frame, _ = frames.encode(frames.FACTS, hidden, links[-1])
    torn = data[: ends[1]] + frame[:-8]
    whole, finding = examine(torn + bytes(4096 - len(torn)))
    assert (whole, finding) == (2, Finding.TORN)


# --- rows of the table --------------------------------------------------------------------------


def make(directory: Path, count: int = 5) -> tuple[Path, list[int]]:
    """Make a directory with one segment of `count` fact frames; return it and their ends."""
    ends = []
    with begun(directory, [product()]) as journal:
        for index in range(count):
            journal.append([note(index, size=60)])
            ends.append(journal.bytes_written)
        crash(journal)
    return segments(directory)[0], ends


def change(path: Path, offset: int, content: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[offset : offset + len(content)] = content
    path.write_bytes(data)


def flip(path: Path, offset: int) -> None:
    change(path, offset, bytes([path.read_bytes()[offset] ^ 0x10]))


def refused(directory: Path, **options: object) -> JournalError:
    """Return the refusal of a start, having seen that nothing was changed by it."""
    before = {p.name: p.read_bytes() for p in directory.iterdir() if p.is_file()}
    with pytest.raises(JournalError) as caught, opened(directory, **options):
        pass
    before["LOCK"] = b""
    after = {p.name: p.read_bytes() for p in directory.iterdir() if p.is_file()}
    assert after | {"LOCK": b""} == before
    return caught.value


def test_clean_end(tmp_path):
    """Zeros after the last frame are the end: all facts are there, without a warning."""
    make(tmp_path / "data")
    with opened(tmp_path / "data") as journal:
        assert len(journal.tail) == 5
        assert journal.warnings == []


def test_torn_tail_is_dropped_into_the_quarantine(tmp_path, caplog):
    """A last frame that never arrived whole is copied away, dropped and warned about."""
    path, ends = make(tmp_path / "data")
    torn = path.read_bytes()[ends[3] : ends[4] - 30]
    change(path, ends[4] - 30, bytes(30))
    with opened(tmp_path / "data") as journal:
        assert [number for number, _ in journal.tail] == [1, 2, 3, 4]
        assert journal.next_number == 5
        (warning,) = journal.warnings
        assert f"dropped {len(torn.rstrip(bytes(1)))} bytes at offset {ends[3]}" in warning
        assert warning in caplog.text
        (copy,) = (tmp_path / "data" / "quarantine").iterdir()
        assert copy.read_bytes() == torn.rstrip(b"\0")
        assert copy.stat().st_mode & 0o777 == 0o600
        assert copy.parent.stat().st_mode & 0o777 == 0o700
        journal.begin([product()])
        assert journal.append([booted()]) == 5
    with begun(tmp_path / "data", [product()]) as journal:
        assert journal.warnings == []
        assert [number for number, _ in journal.history()] == [5, 4, 3, 2, 1]


def test_a_dropped_tail_stays_dropped_when_an_older_generation_is_used(tmp_path):
    """Recovery from an older snapshot knows from the next segment where the torn one ended."""
    path, ends = make(tmp_path / "data")
    change(path, ends[4] - 30, bytes(30))
    whole = path.read_bytes()
    with begun(tmp_path / "data", [engine()]) as journal:
        journal.append([booted()])
    path.write_bytes(whole)
    flip(snapshots(tmp_path / "data")[-1], 40)
    with opened(tmp_path / "data") as journal:
        assert [number for number, _ in journal.tail] == [1, 2, 3, 4, 5]
        assert journal.tail[-1][1] == booted()
        assert journal.snapshot == [product()]


def test_damage_with_a_whole_frame_behind_it_is_refused(tmp_path):
    """A broken frame before a whole one had been acknowledged: refuse, with file and offset."""
    path, ends = make(tmp_path / "data")
    flip(path, ends[1] + 40)
    error = refused(tmp_path / "data")
    assert (error.path, error.offset, error.exit_code) == (str(path), ends[1], 65)
    assert "journal verify" in error.hint


def test_a_header_of_an_earlier_frame_is_no_proof(tmp_path):
    """A stale frame behind a torn one proves nothing, but bytes after a torn frame are damage."""
    path, ends = make(tmp_path / "data")
    stale = path.read_bytes()[ends[0] : ends[1]]
    change(path, ends[4] - 8, bytes(8) + stale)
    assert "bytes after the last frame" in str(refused(tmp_path / "data"))


def test_a_frame_out_of_sequence_is_refused(tmp_path):
    """A frame that is whole but not the next one is damage, whatever it says."""
    path, ends = make(tmp_path / "data")
    data = path.read_bytes()
    cut = data[: ends[0]] + data[ends[1] :]
    path.write_bytes(cut + bytes(SEGMENT_BYTES - len(cut)))
    assert "stands where" in str(refused(tmp_path / "data"))


def test_a_frame_of_another_history_is_refused(tmp_path):
    """The right sequence after the wrong frame breaks the chain."""
    path, ends = make(tmp_path / "data", count=4)
    data = bytearray(path.read_bytes())
    seed = frames.header_at(bytes(data), 0, 0).crc
    frame, _ = frames.encode(frames.FACTS, b"x", Link(4, 12345, seed))
    data[ends[2] : ends[2] + len(frame)] = frame
    path.write_bytes(data)
    assert "does not follow" in str(refused(tmp_path / "data"))


def test_a_file_cut_from_outside_is_refused_at_every_length(tmp_path):
    """A last segment shorter than it was made is refused, also where the cut is between frames."""
    path, ends = make(tmp_path / "data", count=3)
    data = path.read_bytes()
    for length in [*range(0, ends[-1] + 9, 3), *ends, len(data) - 1]:
        path.write_bytes(data[:length])
        error = refused(tmp_path / "data")
        assert error.exit_code == 65, length
    path.write_bytes(data)
    assert len(tail_of(tmp_path / "data")) == 3


def test_a_suspect_tail_is_refused_until_a_human_says_so(tmp_path):
    """A complete last frame with a bad checksum may be bit rot: refused, dropped on request."""
    path, ends = make(tmp_path / "data")
    flip(path, ends[3] + 50)
    error = refused(tmp_path / "data")
    assert error.offset == ends[3]
    assert "repair --drop-suspect-tail" in error.hint
    with opened(tmp_path / "data", drop_suspect=True) as journal:
        assert len(journal.tail) == 4
        assert (tmp_path / "data" / "quarantine").exists()


def test_every_flipped_bit_of_a_segment_is_refused(tmp_path):
    """Over the whole of recovery: one flipped bit in any frame refuses the start."""
    path, ends = make(tmp_path / "data", count=2)
    good = path.read_bytes()
    for offset in range(ends[-1]):
        rotten = bytearray(good)
        rotten[offset] ^= 1 << offset % 8
        path.write_bytes(rotten)
        with pytest.raises(JournalError), opened(tmp_path / "data"):
            pass


def test_every_flipped_bit_of_a_snapshot_is_noticed(tmp_path):
    """A damaged snapshot is never used: the older one has the same end, else the start refuses."""
    make(tmp_path / "data", count=2)
    newest = snapshots(tmp_path / "data")[-1]
    good = newest.read_bytes()
    for offset in range(len(good)):
        rotten = bytearray(good)
        rotten[offset] ^= 1 << offset % 8
        newest.write_bytes(rotten)
        with pytest.raises(JournalError, match="no snapshot is whole"), opened(tmp_path / "data"):
            pass


def test_a_cut_snapshot_is_noticed(tmp_path):
    """A snapshot that ends early, or goes on after its end, is not whole."""
    make(tmp_path / "data", count=2)
    newest = snapshots(tmp_path / "data")[-1]
    good = newest.read_bytes()
    ends = [frame.end for frame in frames.walk(good, START)]
    for length in [0, *ends[:-1]]:
        newest.write_bytes(good[:length])
        assert "no snapshot is whole" in str(refused(tmp_path / "data"))
    newest.write_bytes(good + b"more")
    assert "no snapshot is whole" in str(refused(tmp_path / "data"))


def test_an_older_snapshot_leads_to_the_same_state(tmp_path):
    """Where the newest snapshot is damaged, the one before it and all segments since are used."""
    make(tmp_path / "data", count=3)
    with begun(tmp_path / "data", [engine()]) as journal:
        journal.append([booted(7)])
    flip(snapshots(tmp_path / "data")[-1], 100)
    with opened(tmp_path / "data") as journal:
        assert journal.snapshot == [product()]
        assert [number for number, _ in journal.tail] == [1, 2, 3, 4]
        assert "is damaged" in journal.warnings[0]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_an_unreadable_snapshot_is_like_a_damaged_one(tmp_path, number):
    """The one before it has the same end; where there is none, the start says why."""
    make(tmp_path / "data", count=3)
    with begun(tmp_path / "data", [engine()]) as journal:
        journal.append([booted(7)])
    newest = snapshots(tmp_path / "data")[-1]
    storage = FaultyStorage()
    storage.faults["open"], storage.only = number, newest.name
    with opened(tmp_path / "data", storage=storage) as journal:
        assert journal.snapshot == [product()]
        assert [fact for fact, _ in journal.tail] == [1, 2, 3, 4]
        (warning,) = journal.warnings
        assert f"cannot be read: {errno.errorcode[number]} ({newest})" in warning
        assert "an older one is used" in warning
    storage.only = "snap-"
    error = refused(tmp_path / "data", storage=storage)
    assert (error.exit_code, error.path) == (65, str(newest))
    assert "cannot be read" in str(error)


def test_an_older_snapshot_is_not_the_end_where_a_newer_one_went_on(tmp_path):
    """A snapshot that cannot be used still says that a segment followed it."""
    make(tmp_path / "data", count=3)
    whole = segments(tmp_path / "data")[0].read_bytes()
    with begun(tmp_path / "data", [engine()]) as journal:
        journal.append([booted(7)])
    flip(snapshots(tmp_path / "data")[-1], 100)
    segments(tmp_path / "data")[-1].unlink()
    segments(tmp_path / "data")[0].write_bytes(whole)  # as where its room was not given back
    assert "segment after the snapshot is missing" in str(refused(tmp_path / "data"))


def test_damage_before_the_last_segment_is_refused(tmp_path):
    """A broken frame in a segment that another one follows had been acknowledged."""
    with begun(tmp_path / "data") as journal:
        for index in range(30):
            journal.append([note(index, size=2000)])
        crash(journal)
    first = segments(tmp_path / "data")[0]
    flip(first, first.stat().st_size - 20)
    error = refused(tmp_path / "data")
    assert error.path == str(first)
    assert "follows" in str(error)


def test_two_histories_of_the_same_frames_are_refused(tmp_path):
    """A segment that goes on beyond the beginning of the next one is damage."""
    path, ends = make(tmp_path / "data", count=3)
    whole = path.read_bytes()
    change(path, ends[2] - 20, bytes(20))
    with begun(tmp_path / "data", [product()]) as journal:
        crash(journal)
    path.write_bytes(whole)
    snapshots(tmp_path / "data")[-1].unlink()
    assert "it goes on to frame 4" in str(refused(tmp_path / "data"))


def test_a_missing_segment_is_refused(tmp_path):
    """A gap between segments, at the start, in the middle or at the end, is damage."""
    with begun(tmp_path / "data") as journal:
        for index in range(30):
            journal.append([note(index, size=2000)])
        crash(journal)
    for lost in segments(tmp_path / "data"):
        lost.rename(tmp_path / "aside")
        assert refused(tmp_path / "data").exit_code == 65
        (tmp_path / "aside").rename(lost)
    assert len(tail_of(tmp_path / "data")) == 30


def test_all_segments_missing_is_refused(tmp_path):
    """A snapshot alone is not enough: its segment was there before it."""
    path, _ = make(tmp_path / "data")
    path.unlink()
    assert "segment after the snapshot is missing" in str(refused(tmp_path / "data"))


def test_missing_snapshots_are_refused(tmp_path):
    """Segments without the snapshot they build on are refused: never start with less."""
    make(tmp_path / "data")
    snapshots(tmp_path / "data")[0].unlink()
    assert "snapshot before it is missing" in str(refused(tmp_path / "data"))


@pytest.mark.parametrize("trace", ["ballast", "quarantine", "engines"])
def test_a_journal_that_is_gone_is_not_begun_anew(tmp_path, trace):
    """Where something shows that there was a journal, a start without its files is refused."""
    data = tmp_path / "data"
    make(data)
    lose(data)
    (data / "ballast").unlink()
    (data / "ballast" if trace == "ballast" else data / trace / "e1").mkdir(parents=True)
    error = refused(data)
    assert (error.exit_code, error.path) == (65, str(data))
    assert f"the journal is gone, and {trace} shows that there was one" in str(error)
    assert "journal backup" in str(error)
    assert "another data_dir" in str(error)
    assert sorted(path.name for path in data.iterdir()) == sorted({"LOCK", trace})
    assert verify(data).exit_code == 2


def test_all_that_shows_a_lost_journal_is_named(tmp_path):
    """What to move away before beginning anew is said as a whole; then it begins."""
    data = tmp_path / "data"
    make(data)
    lose(data)
    (data / "engines" / "e1").mkdir(parents=True)
    assert "ballast and engines show that there was one" in str(refused(data))
    (data / "ballast").unlink()
    (data / "engines").rename(tmp_path / "engines")
    with begun(data) as journal:
        assert journal.fresh


def lose(directory: Path) -> None:
    """Remove every file of the journal, and leave what lies beside them."""
    for path in [*segments(directory), *snapshots(directory)]:
        path.unlink()


def test_what_a_first_start_may_leave_does_not_stop_the_next(tmp_path):
    """A lock, files under temporary names, and directories without an engine in them."""
    data = tmp_path / "data"
    with opened(data) as journal:
        crash(journal)
    for name in ("wal-00000001-0000000000000001.egj.tmp", "ballast.tmp"):
        (data / name).write_bytes(b"half")
    for name in ("engines", "logs", "run"):
        (data / name).mkdir()
    assert verify(data).exit_code == 0
    with begun(data) as journal:
        assert journal.fresh


def test_a_first_start_that_died_before_its_snapshot_is_complete(tmp_path):
    """A first segment that says there was nothing before it needs no snapshot."""
    with begun(tmp_path / "data") as journal:
        journal.append([booted()])
        crash(journal)
    snapshots(tmp_path / "data")[0].unlink()
    assert tail_of(tmp_path / "data") == [(1, booted())]


def test_a_wrong_master_key_is_refused_before_anything_is_written(tmp_path):
    """Another key id ends with exit code 78, even where there is a tail to drop."""
    path, ends = make(tmp_path / "data")
    change(path, ends[4] - 30, bytes(30))
    error = refused(tmp_path / "data", key_id="other")
    assert error.exit_code == 78
    assert "wrong master key" in str(error)
    assert not (tmp_path / "data" / "quarantine").exists()


def test_a_new_master_key_starts_with_a_new_generation(tmp_path):
    """What older keys may read is begun anew under the first; then the old one alone is refused."""
    make(tmp_path / "data")
    with opened(tmp_path / "data", key_id="key-2", older_key_ids=["key-1"]) as journal:
        journal.begin([product()])
    assert refused(tmp_path / "data").exit_code == 78
    assert tail_of(tmp_path / "data", key_id="key-2", older_key_ids=["key-1"]) == []


def test_a_key_that_an_older_generation_needs_is_not_dropped(tmp_path):
    """The new key alone is refused while a kept generation is of the old one, unless forsaken."""
    make(tmp_path / "data")
    for _ in range(2):
        with begun(tmp_path / "data", [product()], key_id="key-2", older_key_ids=["key-1"]):
            pass
    with pytest.raises(JournalError, match="still needs master key key-1") as caught:
        tail_of(tmp_path / "data", key_id="key-2")
    assert caught.value.exit_code == 78
    assert "enginegate rekey" in str(caught.value)
    assert tail_of(tmp_path / "data", key_id="key-2", forsake_generations=True) == []
    storage = FaultyStorage()
    storage.faults["open"], storage.only = errno.EIO, "-00000001-"  # nor if it cannot be read
    assert tail_of(tmp_path / "data", key_id="key-2", storage=storage) == []
    snapshots(tmp_path / "data")[0].write_bytes(b"EGJ1 rotten")  # damaged, it needs no key
    segments(tmp_path / "data")[0].unlink()
    assert tail_of(tmp_path / "data", key_id="key-2") == []


def test_a_segment_of_another_instance_is_refused(tmp_path):
    """A file of another data directory does not become part of this one."""
    make(tmp_path / "data")
    path, _ = make(tmp_path / "other")
    shutil.copy(path, segments(tmp_path / "data")[0])
    assert "belongs to another instance" in str(refused(tmp_path / "data"))


def test_newer_files_of_another_instance_are_refused(tmp_path):
    """Whole as they are, they would be somebody else's state in place of this one's."""
    make(tmp_path / "data")
    for _ in range(3):
        with begun(tmp_path / "data", [product()]) as journal:
            crash(journal)
    with begun(tmp_path / "other", [product()]) as journal:
        journal.append([booted(index) for index in range(50)])
        crash(journal)
    for number in range(9):
        with begun(tmp_path / "other", [product()]) as journal:
            journal.append([booted(number)])
            crash(journal)
    others = [segments(tmp_path / "other")[-1], snapshots(tmp_path / "other")[-1]]
    before = segments(tmp_path / "data") + snapshots(tmp_path / "data")
    for path in others:
        shutil.copy(path, tmp_path / "data")
    error = refused(tmp_path / "data")
    assert "files of two instances" in str(error)
    assert "Move away those that do not belong here" in error.hint
    assert Path(error.path) in before
    assert error.exit_code == 65
    report = verify(tmp_path / "data")
    assert not report.starts
    assert report.exit_code == 2
    for path in others:
        (tmp_path / "data" / path.name).unlink()
    assert verify(tmp_path / "data").exit_code == 0


def test_a_renamed_file_is_refused(tmp_path):
    """A file bears the epoch and sequence it was made with."""
    path, _ = make(tmp_path / "data")
    path.rename(path.with_name("wal-00000009-0000000000000001.egj"))
    assert "its own name" in str(refused(tmp_path / "data"))


def test_a_segment_that_continues_another_state_is_refused(tmp_path):
    """The chain runs through file headers: a swapped file of the same instance breaks it."""
    make(tmp_path / "data")
    shutil.copytree(tmp_path / "data", tmp_path / "twin")
    for twin, index in (("data", 1), ("twin", 2)):
        with begun(tmp_path / twin, [product()]) as journal:
            journal.append([booted(index)])
            crash(journal)
        with begun(tmp_path / twin, [product()]) as journal:
            journal.append([booted(index)])
            crash(journal)
    ours, theirs = segments(tmp_path / "data")[-1], segments(tmp_path / "twin")[-1]
    assert ours.name == theirs.name
    shutil.copy(theirs, ours)
    assert "does not continue" in str(refused(tmp_path / "data"))


def test_a_link_in_place_of_a_file_is_refused(tmp_path):
    """Symbolic links are not followed."""
    path, _ = make(tmp_path / "data")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert "cannot be read" in str(refused(tmp_path / "data"))


# --- files a newer version wrote ----------------------------------------------------------------


def write_segment(directory: Path, batches: list[tuple[int, bytes]], header: bytes) -> None:
    """Write a directory that holds one genesis segment with the given frames."""
    directory.mkdir(mode=0o700)
    frame, link = frames.encode(frames.FILE, header, START)
    parts = [frame]
    for kind, payload in batches:
        frame, link = frames.encode(kind, payload, link)
        parts.append(frame)
    path = directory / "wal-00000001-0000000000000001.egj"
    path.write_bytes(b"".join(parts).ljust(4096, b"\0"))
    path.chmod(0o600)


def test_an_unknown_fact_is_refused_by_name(tmp_path):
    """A tag this version does not know was written by a newer one; it is not skipped."""
    payload = msgpack.encode((1, [{"t": "engine.teleported", "at_ms": 1}]))
    write_segment(tmp_path / "data", [(frames.FACTS, payload)], encode_header(GENESIS))
    error = refused(tmp_path / "data")
    assert "newer version" in str(error)
    assert "engine.teleported" in str(error)


@pytest.mark.parametrize(
    ("kind", "payload", "words"),
    [
        (frames.FACTS, msgpack.encode((1, [{"t": "engine.booted"}])), "cannot read"),
        (frames.FACTS, msgpack.encode("nonsense"), "cannot read"),
        (frames.FACTS, b"\xc1", "cannot read"),
        (frames.FACTS, msgpack.encode((7, [])), "fact 7 stands where 1 belongs"),
        (frames.RECORDS, msgpack.encode([]), "a frame of kind 4 in a segment"),
        (77, b"", "newer version"),
    ],
)
def test_whole_frames_with_strange_content_are_refused(tmp_path, kind, payload, words):
    """A frame that is whole, but that no journal of this version writes, is refused."""
    write_segment(tmp_path / "data", [(kind, payload)], encode_header(GENESIS))
    assert words in str(refused(tmp_path / "data"))


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (msgpack.encode({"reader": 2, "format": 3, "software": "9.9"}), "unknown shape"),
        (
            encode_header(GENESIS).replace(b"\xa6reader\x01", b"\xa6reader\x02"),
            "newer version",
        ),
    ],
)
def test_a_newer_format_is_refused(tmp_path, header, words):
    """A file that wants a newer reader is refused, saying so."""
    write_segment(tmp_path / "data", [], header)
    assert words in str(refused(tmp_path / "data"))


def test_a_frame_longer_than_its_file_is_refused(tmp_path):
    """A header that is whole and promises more than the file has was not written by us."""
    head = struct.pack("<4sBBHQIII", b"EGJ1", frames.FACTS, 0, 32, 2, 1 << 20, 0, 0)
    header = encode_header(GENESIS)
    frame, link = frames.encode(frames.FILE, header, START)
    head = head[:20] + struct.pack("<I", link.crc) + head[24:]
    seal = zlib.crc32(head, link.seed).to_bytes(4, "little")
    write_segment(tmp_path / "data", [], header)
    change(tmp_path / "data" / "wal-00000001-0000000000000001.egj", len(frame), head + seal)
    assert "longer than its file" in str(refused(tmp_path / "data"))


def snapshot_of(payloads: list[tuple[int, bytes]]) -> bytes:
    link, parts = START, []
    for kind, payload in payloads:
        frame, link = frames.encode(kind, payload, link)
        parts.append(frame)
    return b"".join(parts)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ((frames.RECORDS, msgpack.encode([{"t": "planet"}])), "snapshot record"),
        ((frames.END, b"\xc1"), "snapshot end"),
        ((frames.SEAL, b""), "a frame of kind 3 in a snapshot"),
    ],
)
def test_a_snapshot_with_strange_content_is_refused(tmp_path, content, words):
    """A whole snapshot that this version cannot read is not silently replaced by an older one."""
    make(tmp_path / "data")
    path = snapshots(tmp_path / "data")[0]
    first = next(frames.walk(path.read_bytes(), START))
    path.write_bytes(snapshot_of([(frames.FILE, bytes(first.payload)), content]))
    assert words in str(refused(tmp_path / "data"))


def test_a_segment_in_place_of_a_snapshot_is_no_snapshot(tmp_path):
    """A snapshot whose header says it is something else is damaged."""
    make(tmp_path / "data")
    path = snapshots(tmp_path / "data")[0]
    for payloads in ([(frames.FILE, encode_header(GENESIS))], [(frames.SEAL, b"")]):
        path.write_bytes(snapshot_of(payloads))
        assert "no snapshot is whole" in str(refused(tmp_path / "data"))
