"""Backups of damaged journals: none where a start refuses, and never one that silently has less."""

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from enginegate.errors import JournalError
from enginegate.journal import backup, frames, verify
from enginegate.journal.frames import Link
from tests.journal.rig import (
    FaultyStorage,
    begun,
    booted,
    engine,
    note,
    opened,
    product,
    segments,
    snapshots,
)

Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    return aged(tmp_path_factory.mktemp("journal") / "data")


@pytest.fixture
def data(tmp_path, template) -> Path:
    return shutil.copytree(template, tmp_path / "data")


def aged(directory: Path) -> Path:
    """Make a journal with two archived segments, three generations and a last one of 8 frames."""
    for number in range(5):
        with begun(directory, [product(), engine(number)]) as journal:
            for one in range(6):
                journal.append([booted(number), note(one, size=80)])
    assert (len(segments(directory)), len(snapshots(directory))) == (5, 3)
    return directory


def frame_ends(path: Path) -> list[int]:
    data = path.read_bytes()
    start = frames.header_at(data, 0, 0)
    assert start is not None
    return [one.end for one in frames.walk(data, Link(start.sequence - 1, start.previous, 0))]


def cut(path: Path, keep: Callable[[list[int], int], int]) -> None:
    """Cut a file to what `keep` makes of its frames' ends and its length."""
    ends = frame_ends(path)
    os.truncate(path, keep(ends, path.stat().st_size))


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 4
    path.write_bytes(content)


def zero(path: Path, start: int) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:start].ljust(len(content), b"\0"))


def cut_all(data: Path) -> None:
    for path in segments(data):
        cut(path, lambda ends, _: ends[-1] // 2)


def cut_last(keep: Callable[[list[int], int], int]) -> Damage:
    return lambda data: cut(segments(data)[-1], keep)


def swap(data: Path) -> None:
    """Put a segment of another directory, with the same name, into the place of ours."""
    other = aged(data.parent / "other")
    shutil.copy(segments(other)[-1], segments(data)[-1])
    shutil.rmtree(other)


def lose_all(found: Callable[[Path], list[Path]]) -> Damage:
    return lambda data: [path.unlink() for path in found(data)]


def many(*damages: Damage) -> Damage:
    return lambda data: [damage(data) for damage in damages]


def untrimmed(data: Path) -> None:
    """Give each segment back the room that was trimmed, as where trimming had failed."""
    for path in segments(data):
        os.truncate(path, segments(data)[-1].stat().st_size)


DAMAGES: dict[str, Damage] = {
    "cut to half": cut_last(lambda ends, _: ends[-1] // 2),
    "cut by a byte": cut_last(lambda ends, _: ends[-1] - 1),
    "cut by 40 bytes": cut_last(lambda ends, _: ends[-1] - 40),
    "cut between frames": cut_last(lambda ends, _: ends[-3]),
    "cut behind the header frame": cut_last(lambda ends, _: ends[0]),
    "cut inside the header frame": cut_last(lambda ends, _: ends[0] - 20),
    "cut to nothing": cut_last(lambda *_: 0),
    "cut behind the last frame": cut_last(lambda ends, _: ends[-1]),
    "cut in the padding": cut_last(lambda _, size: size - 1),
    "every segment cut": cut_all,
    "a needed segment cut": lambda data: cut(segments(data)[-2], lambda ends, _: ends[-2]),
    "an archived segment cut": lambda data: cut(segments(data)[0], lambda ends, _: ends[-2]),
    "an archived segment emptied": lambda data: os.truncate(segments(data)[0], 0),
    "a broken frame": lambda data: flip(segments(data)[-1], frame_ends(segments(data)[-1])[1] + 40),
    "a suspect tail": lambda data: flip(segments(data)[-1], frame_ends(segments(data)[-1])[-2] + 9),
    "a broken header": lambda data: flip(segments(data)[-1], 60),
    "zeroed header": lambda data: zero(segments(data)[-1], 40),
    "an archived segment rotten": lambda data: flip(segments(data)[1], 260),
    "a segment of another directory": swap,
    "the last segment gone": lambda data: segments(data)[-1].unlink(),
    "the last segment gone, others untrimmed": many(
        untrimmed, lambda data: segments(data)[-1].unlink()
    ),
    "a needed segment gone": lambda data: segments(data)[-2].unlink(),
    "an archived segment gone": lambda data: segments(data)[1].unlink(),
    "all segments gone": lose_all(segments),
    "all snapshots gone": lose_all(snapshots),
    "the newest snapshot rotten": lambda data: flip(snapshots(data)[-1], 100),
    "the newest snapshot cut": lambda data: os.truncate(snapshots(data)[-1], 100),
    "the oldest snapshot rotten": lambda data: flip(snapshots(data)[0], 100),
    "all snapshots rotten": lambda data: [flip(one, 100) for one in snapshots(data)],
    "a renamed segment": lambda data: segments(data)[-1].rename(
        data / "wal-00000099-0000000000000099.egj"
    ),
}


@pytest.mark.parametrize("held", [False, True], ids=["stopped", "running"])
@pytest.mark.parametrize("kind", DAMAGES)
def test_no_damage_becomes_a_clean_backup(tmp_path, data, kind, held):
    """Where a start refuses the original there is no copy; else damage is told, with code 2."""
    with ExitStack() as running:
        if held:
            running.enter_context(opened(data))
        DAMAGES[kind](data)
        told = verify(data)
        assert told.verdict == "damage"
        if told.refusal:
            with pytest.raises(JournalError) as caught:
                backup(data, tmp_path / "copy")
            assert caught.value.exit_code == 65
            assert caught.value.path == told.refusal.path
            assert not (tmp_path / "copy").exists()
            return
        report = backup(data, tmp_path / "copy")
    assert (report.exit_code, report.faults) == (2, told.faults)
    assert (report.facts, report.segments) == (told.facts, told.segments)


LOST: dict[str, tuple[str, Damage]] = {
    "all snapshots": ("snap-", lambda data: None),
    "the newest snapshot, whose segment is gone": (
        "snap-00000005",
        many(untrimmed, lambda data: segments(data)[-1].unlink()),
    ),
    "the newest segment": ("wal-00000005", lambda data: None),
    "everything": ("", lambda data: None),
}


@pytest.mark.parametrize("kind", LOST)
def test_what_cannot_be_read_is_not_left_out_where_a_start_minds(tmp_path, kind):
    """Without the files that do not open the copy might start, and lack what was answered."""
    data = tmp_path / "data"
    for number in range(2 if kind == "all snapshots" else 5):
        with begun(data, [product()]) as journal:
            journal.append([booted(number)])
    name, damage = LOST[kind]
    damage(data)
    storage = FaultyStorage()
    storage.faults["open"], storage.only = errno.EIO, name
    assert verify(data, storage=storage).refusal
    with pytest.raises(JournalError, match="no backup was made") as caught:
        backup(data, tmp_path / "copy", storage=storage)
    assert caught.value.exit_code == 65
    assert not (tmp_path / "copy").exists()
