"""Every cut and every flipped bit of a small journal: nothing is lost without a word."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from enginegate.errors import JournalError
from enginegate.facts import Noted
from enginegate.journal import Journal, verify
from enginegate.journal.recovery import Recovered, recover
from enginegate.model import Policy, Product

FRAMES = int(os.environ.get("ENGINEGATE_FAULTS_FRAMES", "20"))  # the long size is 200
SEGMENT_BYTES = max(4096, FRAMES * 256)


class Files:
    """Files in memory, for reading only: a directory with some bytes changed."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self._open: list[bytes] = []

    def names(self, directory: Path) -> list[str]:
        return list(self.files)

    def open(self, path: Path) -> int:
        if path.name not in self.files:
            raise FileNotFoundError(errno.ENOENT, "gone")
        self._open.append(self.files[path.name])
        return len(self._open) - 1

    def size(self, fd: int) -> int:
        return len(self._open[fd])

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return self._open[fd][offset : offset + size]

    def close(self, fd: int) -> None:
        if fd == len(self._open) - 1:
            self._open.pop()


def note(number: int) -> Noted:
    return Noted(at_ms=number, action="recovered", metadata={"text": "x" * (number % 7) * 9})


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A directory of one snapshot and one segment of so many frames, killed."""
    directory = tmp_path_factory.mktemp("journal") / "data"
    options: Any = {"key_id": "k", "segment_bytes": SEGMENT_BYTES, "check": lambda _: []}
    with_facts = Journal.open(directory, **options)
    with_facts.begin(
        [
            Product(
                product_id="p",
                slug="p",
                display_name="P",
                policy=Policy(max_engines=3),
                key_hash="00",
                created_at_ms=1,
            )
        ]
    )
    for number in range(1, FRAMES):
        with_facts.append([note(number)])
    with_facts.fail("killed")
    with_facts.close()
    return {path.name: path.read_bytes() for path in directory.glob("*-*")}


def segment(files: dict[str, bytes]) -> str:
    return next(name for name in files if name.startswith("wal-"))


def snapshot(files: dict[str, bytes]) -> str:
    return next(name for name in files if name.startswith("snap-"))


def ends(files: dict[str, bytes]) -> list[int]:
    """Return where each frame of the segment ends: those of the facts, after the header's."""
    data, found, spot = files[segment(files)], [], 0
    while (spot := data.find(b"EGJ1", spot + 1)) > 0:
        found.append(spot)
    return [*found, len(data.rstrip(b"\0"))]


def read(files: dict[str, bytes]) -> Recovered:
    storage: Any = Files(files)
    return recover(storage, Path("data"), key_ids={"k"})


def seen(found: Recovered) -> list[int]:
    return [fact.at_ms for _, fact in found.tail]


def test_a_whole_journal_is_read_whole(journal: dict[str, bytes]) -> None:
    """What the other tests change was in order."""
    assert seen(read(journal)) == list(range(1, FRAMES))
    assert len(ends(journal)) == FRAMES


def test_a_file_cut_at_any_offset_is_refused(journal: dict[str, bytes]) -> None:
    """Cut from outside, also on the border of two frames: the file and the place are named."""
    name, data = segment(journal), journal[segment(journal)]
    for cut in range(len(data)):
        with pytest.raises(JournalError) as caught:
            read(journal | {name: data[:cut]})
        assert caught.value.path.endswith(name)
        assert caught.value.offset is not None


def test_zeroed_from_any_offset_exactly_the_whole_frames_before_it_are_read(
    journal: dict[str, bytes],
) -> None:
    """An end that never arrived is dropped with its place named; what was whole stays."""
    name, data, whole = segment(journal), journal[segment(journal)], ends(journal)
    for cut in range(whole[0], whole[-1] + 1):
        found = read(journal | {name: data[:cut].ljust(len(data), b"\0")})
        expected = sum(end <= cut for end in whole) - 1
        assert seen(found) == list(range(1, expected + 1)), cut
        if cut in whole:
            assert found.tear is None
        else:
            assert found.tear is not None
            assert (found.tear.path.name, found.tear.offset) == (name, whole[expected])


def test_every_flipped_bit_of_a_segment_is_refused(journal: dict[str, bytes]) -> None:
    """Not one is taken for a torn end, or read as something else; each is told with its place."""
    name, data = segment(journal), journal[segment(journal)]
    reported = 0
    for bit in range(ends(journal)[-1] * 8):
        rotten = bytearray(data)
        rotten[bit // 8] ^= 1 << bit % 8
        with pytest.raises(JournalError) as caught:
            read(journal | {name: bytes(rotten)})
        assert caught.value.path.endswith(name), bit
        reported += caught.value.offset is not None
    assert reported == ends(journal)[-1] * 8


def test_a_flipped_bit_in_the_room_behind_the_last_frame_is_no_loss(
    journal: dict[str, bytes],
) -> None:
    """What is there was never acknowledged: all frames are read, or the place is named."""
    name, data, last = segment(journal), journal[segment(journal)], ends(journal)[-1]
    for bit in range(last * 8, min(len(data), last + 600) * 8):
        rotten = bytearray(data)
        rotten[bit // 8] ^= 1 << bit % 8
        told = read_or_place(journal | {name: bytes(rotten)})
        assert told in (FRAMES - 1, last), bit


def read_or_place(files: dict[str, bytes]) -> int | None:
    """Return how many facts are read, or the offset that a refusal names."""
    try:
        return len(seen(read(files)))
    except JournalError as error:
        return error.offset


def test_every_flipped_bit_of_a_snapshot_is_noticed(journal: dict[str, bytes]) -> None:
    """The only snapshot: refused, by name. It is never read as something else."""
    name, data = snapshot(journal), journal[snapshot(journal)]
    for bit in range(len(data) * 8):
        rotten = bytearray(data)
        rotten[bit // 8] ^= 1 << bit % 8
        with pytest.raises(JournalError) as caught:
            read(journal | {name: bytes(rotten)})
        assert caught.value.path.endswith(name)


def test_verify_tells_the_same_of_a_copy(journal: dict[str, bytes], tmp_path: Path) -> None:
    """0 for a clean copy, 1 for a torn end, 2 for damage, each with file and offset."""
    name, data, whole = segment(journal), journal[segment(journal)], ends(journal)
    for content, code, offset in (
        (data, 0, None),
        (data[: whole[-1] - 9].ljust(len(data), b"\0"), 1, whole[-2]),
        (data[: whole[3] + 40] + b"?" + data[whole[3] + 41 :], 2, whole[3]),
        (data[:-1], 2, len(data) - 1),
    ):
        directory = tmp_path / f"copy-{code}-{offset}"
        directory.mkdir(mode=0o755)
        for each, bytes_ in (journal | {name: content}).items():
            (directory / each).write_bytes(bytes_)
        before = sorted(directory.iterdir())
        report = verify(directory)
        assert (report.exit_code, report.offset) == (code, offset)
        assert sorted(directory.iterdir()) == before, "verify made a file"
