"""Files that are none, belong to others or are gone: told by name and kind, with what helps."""

import errno
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from enginegate.errors import JournalError
from enginegate.journal import backup, compact, dump, repair, verify
from enginegate.journal.files import prepare_directory
from tests.journal.rig import (
    KEY,
    FaultyStorage,
    ManualClock,
    begun,
    grow,
    opened,
    product,
    segments,
    snapshots,
)


def become_a_link(path: Path) -> None:
    path.symlink_to(path.parent.parent / "elsewhere")


def become_a_socket(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # the address of a socket has little room
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(before)


def become_a_directory(path: Path) -> None:
    path.mkdir()
    path.chmod(0o755)


KINDS: dict[str, Callable[[Path], None]] = {
    "a pipe, not a regular file": os.mkfifo,
    "a directory, not a regular file": become_a_directory,
    "a symbolic link, which is not followed": become_a_link,
    "a socket, not a regular file": become_a_socket,
}


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("journal") / "data"
    grow(directory, 5, ManualClock())
    return directory


@pytest.fixture
def data(tmp_path, template) -> Path:
    return shutil.copytree(template, tmp_path / "data")


def replace(path: Path, kind: str) -> os.stat_result:
    path.rename(path.parent.parent / "elsewhere")
    KINDS[kind](path)
    return path.lstat()


def fold(records: list[object], facts: list[object]) -> list[object]:
    return records


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_in_the_place_of_a_needed_one_is_refused(tmp_path, data, kind):
    """By all that read it, at once, with its name and kind; nobody waits for who writes a pipe."""
    odd = segments(data)[-1]
    before = replace(odd, kind)
    told = verify(data)
    assert (told.message, told.starts) == (f"cannot be read: it is {kind} ({odd})", False)
    for tool in (
        lambda: opened(data).__enter__(),
        lambda: backup(data, tmp_path / "copy"),
        lambda: list(dump(data)),
        lambda: repair(data, KEY, fold),
        lambda: compact(data, KEY, fold),
    ):
        with pytest.raises(JournalError, match=f"it is {kind}") as caught:
            tool()
        assert (caught.value.path, caught.value.exit_code) == (str(odd), 65)
    assert not (tmp_path / "copy").exists()
    assert odd.lstat() == before
    assert "open to others" not in str(prepare_directory(data))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_in_the_place_of_an_old_one_is_told(tmp_path, data, kind):
    """A start, the history, retention and a backup go on without it."""
    odd = segments(data)[1]
    replace(odd, kind)
    expected = f"cannot be read: it is {kind} ({odd})"
    assert (verify(data).message, verify(data).starts) == (expected, True)
    report = backup(data, tmp_path / "copy")
    assert (report.message, report.exit_code) == (expected, 2)
    with begun(data, [product()]) as journal:
        assert [number for number, _ in journal.history()] == [5, 4, 3, 1]
        journal.retain(days=0, max_mb=0)
        assert segments(data)[0].name > odd.name or odd.is_dir()


def test_who_may_not_read_is_told_what_gives_access(tmp_path, data):
    """Files of another user are whole: it takes no backup, but the right to read them."""
    storage = FaultyStorage()
    storage.faults["open"], storage.only = errno.EACCES, segments(data)[-1].name
    helps = "Give the user that enginegate runs as access to it (`chown`, `chmod 600`)."
    for tool in (
        lambda: opened(data, storage=storage).__enter__(),
        lambda: backup(data, tmp_path / "copy", storage=storage),
        lambda: list(dump(data, storage=storage)),
    ):
        with pytest.raises(JournalError, match="cannot be read: EACCES") as caught:
            tool()
        assert str(caught.value).endswith(helps)
    assert verify(data, storage=storage).hint == helps
    storage.only = segments(data)[0].name
    told = verify(data, storage=storage)
    assert (told.starts, told.advice) == (True, helps)
    assert backup(data, tmp_path / "other", storage=storage).advice.endswith(helps)
    segments(data)[1].write_bytes(b"rotten")
    assert verify(data, storage=storage).advice == (
        f"Only a backup from before the damage has what is damaged whole. {helps}"
    )
    storage.faults.clear()
    assert "Give" not in verify(data).advice


def test_a_directory_that_may_not_be_read_is_no_damage(data):
    """Nothing is known of the journal; verify says so with the code that the other tools have."""

    class Closed(FaultyStorage):
        def names(self, directory: Path) -> list[str]:
            raise PermissionError(errno.EACCES, "Permission denied")

    for tool in (verify, lambda *args, **more: list(dump(*args, **more))):
        with pytest.raises(JournalError, match="cannot be used: Permission denied") as refused:
            tool(data, storage=Closed())
        assert refused.value.exit_code == 78
        assert "access to it" in refused.value.hint


def test_files_of_others_that_are_open_to_others_stop_no_start(data, monkeypatch):
    """What cannot be tightened is warned of; whether it can be read is seen later."""
    segments(data)[0].chmod(0o644)

    def refuse(path: Path, mode: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    (warning,) = prepare_directory(data)
    assert warning == (
        f"{segments(data)[0]} is open to others (mode 0644) and stays so: Operation not permitted"
    )


def test_a_segment_that_is_missing_after_the_newest_snapshot_is_named(data):
    """By the name it had, with the number of its first frame."""
    lost = segments(data)[-1]
    lost.unlink()
    told = verify(data)
    assert told.refusal
    assert told.refusal.path == str(lost)
    number = int(lost.stem.split("-")[2])
    wanted = f"{snapshots(data)[-1].name} goes on with frame {number}"
    assert f"the segment after the snapshot is missing: {wanted}" in told.refusal.message


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("operation", ["create", "pwrite", "fsync", "rename"])
def test_a_full_disk_under_the_copy_is_no_damage(tmp_path, data, operation, number):
    """Exit code 1, naming the target; the journal is well."""
    storage = FaultyStorage()
    storage.faults[operation] = number
    with pytest.raises(JournalError, match="the disk that the copy goes to is full") as caught:
        backup(data, tmp_path / "copy", storage=storage)
    assert (caught.value.path, caught.value.exit_code) == (str(tmp_path / "copy"), 1)
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("operation", ["pwrite", "sync_directory"])
def test_a_broken_disk_under_the_copy_is_no_damage(tmp_path, data, operation):
    """Exit code 1; nobody is told to restart a server for it."""
    storage = FaultyStorage()
    storage.faults[operation] = errno.EIO
    with pytest.raises(JournalError, match="no backup was made: writing failed: EIO") as caught:
        backup(data, tmp_path / "copy", storage=storage)
    assert (caught.value.hint, caught.value.exit_code) == ("", 1)
    assert str(tmp_path / "copy") in caught.value.path


def test_a_disk_too_full_for_the_directory_of_the_copy(tmp_path, data, monkeypatch):
    """Exit code 1 as well: the configuration is not to blame."""

    def refuse(path: Path, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(JournalError, match="the disk that the copy goes to is full") as caught:
        backup(data, tmp_path / "copy")
    assert caught.value.exit_code == 1
