"""A simulated disk: what was synced stays, what was not is kept, dropped, torn or reordered.

The model is as unkind as POSIX allows. Between two syncs of a file each 512-byte piece
of each write may or may not have reached the platter, whatever the order of the writes;
so may a change of size. Between two syncs of a directory each creation, renaming and
removal may or may not have. Only `fsync` of the file *and* of its directory ends that.

A `Mount` is one process's view of it, with the faults that process meets. When the process
is killed the page cache lives on; when the power goes, `cut_power` rolls the dice.
"""

import errno
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from tests.fakes import SimulatedCrash

PAGE_BYTES = 4096
SECTOR_BYTES = 512


class _File:
    """`now` is what reads see; `durable` plus any part of `pending` is what a power cut leaves."""

    def __init__(self) -> None:
        self.now = bytearray()
        self.durable = bytearray()
        self.pending: list[tuple[int, bytes] | int] = []  # a write, or a new size

    def write(self, data: bytes, offset: int) -> None:
        _put(self.now, data, offset)
        self.pending.append((offset, data))

    def resize(self, size: int) -> None:
        _resize(self.now, size)
        self.pending.append(size)

    def sync(self) -> None:
        """Let all that is pending reach the platter; what counts as clean is not written."""
        for change in self.pending:
            if isinstance(change, int):
                _resize(self.durable, change)
            else:
                offset, data = change
                _put(self.durable, data, offset)
        self.pending.clear()

    def settle(self, dice: random.Random, share: float) -> None:
        """Let some part of what is pending reach the platter, the rest never."""
        for change in self.pending:
            if isinstance(change, int):
                if dice.random() < share:
                    _resize(self.durable, change)
                continue
            offset, data = change
            for start, piece in _sectors(data, offset):
                if dice.random() < share:
                    _put(self.durable, piece, start)
        self.pending.clear()

    def forget_cache(self) -> None:
        self.now = bytearray(self.durable)

    def forget_pages(self, begin: int, end: int | None) -> None:
        """Forget the pages that lie in the range with all that is in them, as Linux does."""
        begin = -(-begin // PAGE_BYTES) * PAGE_BYTES
        if end is None or end >= len(self.now):
            end = len(self.now)
        else:
            end -= end % PAGE_BYTES
        if begin < end:
            self.now[begin:end] = self.durable[begin:end].ljust(end - begin, b"\0")


def _put(content: bytearray, data: bytes, offset: int) -> None:
    if offset > len(content):
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


def _resize(content: bytearray, size: int) -> None:
    content.extend(bytes(max(0, size - len(content))))
    del content[size:]


def _sectors(data: bytes, offset: int) -> list[tuple[int, bytes]]:
    """Cut a write where the disk's sectors begin."""
    first = SECTOR_BYTES - offset % SECTOR_BYTES
    cuts = [0, *range(first, len(data), SECTOR_BYTES), len(data)]
    return [(offset + a, data[a:b]) for a, b in pairwise(cuts) if a < b]


@dataclass
class _Directory:
    """`now` is what listings see; `durable` plus any part of `pending` is what a power cut leaves.

    A pending change maps names to what is behind them then, None for nothing.
    """

    now: dict[str, _File] = field(default_factory=dict)
    durable: dict[str, _File] = field(default_factory=dict)
    pending: list[dict[str, _File | None]] = field(default_factory=list)

    def change(self, names: dict[str, _File | None]) -> None:
        _rename(self.now, names)
        self.pending.append(names)

    def sync(self) -> None:
        self.durable = dict(self.now)
        self.pending.clear()

    def settle(self, dice: random.Random, share: float) -> None:
        for names in self.pending:
            if dice.random() < share:
                _rename(self.durable, names)
        self.pending.clear()
        self.now = dict(self.durable)


def _rename(names: dict[str, _File], change: dict[str, _File | None]) -> None:
    for name, file in change.items():
        if file is None:
            names.pop(name, None)
        else:
            names[name] = file


class Disk:
    """Directories and files; outlives processes and power cuts."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.full = False
        self._directories: dict[Path, _Directory] = {}

    def mount(self) -> "Mount":
        return Mount(self)

    def directory(self, path: Path) -> _Directory:
        return self._directories.setdefault(path, _Directory())

    def file(self, path: Path) -> _File:
        found = self.directory(path.parent).now.get(path.name)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return found

    def cut_power(self, share: float | None = None) -> None:
        """Lose what was not synced, but for about this share of it (None: any)."""
        files = {id(file): file for tree in self._directories.values() for file in _all(tree)}
        for file in files.values():
            file.settle(self.dice, self.dice.random() if share is None else share)
            file.forget_cache()
        for tree in self._directories.values():
            tree.settle(self.dice, self.dice.random() if share is None else share)

    def contents(self) -> dict[Path, bytes]:
        """Return every file as reads see it."""
        return {
            path / name: bytes(file.now)
            for path, tree in self._directories.items()
            for name, file in tree.now.items()
        }


def _all(tree: _Directory) -> list[_File]:
    """Every file that the directory holds, or may hold after a power cut."""
    pending = [file for names in tree.pending for file in names.values() if file is not None]
    return [*tree.now.values(), *tree.durable.values(), *pending]


class Mount:
    """One process's view of a disk: the `Storage` that its journal gets.

    `faults` maps an operation to the errno that its next call meets. `crash_at` kills the
    process at that operation of its life (counted in `operations`): before it, after it, or
    half-way through a write. `on_crash` is told before `SimulatedCrash` is raised.
    """

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.faults: dict[str, int] = {}
        self.crash_at: int | None = None
        self.on_crash: Callable[[], None] = lambda: None
        self.operations = 0
        self.dead = False
        self.failed_syncs: set[_File] = set()  # kept, so that no other file is taken for one
        self.touched_after_failure: list[str] = []
        self._open: dict[int, _File] = {}
        self._next_fd = 1000

    def kill(self) -> None:
        """From now on this process does nothing any more."""
        self.dead = True

    # The protocol

    def names(self, directory: Path) -> list[str]:
        return sorted(self.disk.directory(directory).now)

    def make_directory(self, path: Path) -> None:
        self._do("make_directory", lambda: self.disk.directory(path))

    def create(self, path: Path) -> int:
        self._do("create", lambda: self._create(path), needs_room=True)
        return self._give(self.disk.file(path))

    def _create(self, path: Path) -> None:
        self.disk.directory(path.parent).change({path.name: _File()})

    def open(self, path: Path) -> int:
        self._die_again()
        return self._give(self.disk.file(path))

    def size(self, fd: int) -> int:
        return len(self._open[fd].now)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        self._die_again()
        return bytes(self._open[fd].now[offset : offset + size])

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        file, content = self._open[fd], bytes(data)
        self._watch("pwrite", file)
        grows = offset + len(content) > len(file.now)
        half = content[: self.disk.dice.randrange(len(content) + 1)]
        self._do(
            "pwrite",
            lambda: file.write(content, offset),
            half=lambda: file.write(half, offset),
            needs_room=grows,
        )
        return len(content)

    def allocate(self, fd: int, size: int) -> None:
        self._do("allocate", lambda: self._open[fd].resize(size), needs_room=True)

    def free_bytes(self, directory: Path) -> int:
        self._die_again()
        return 0 if self.disk.full else 1 << 40

    def truncate(self, path: Path, size: int) -> None:
        self._do("truncate", lambda: self.disk.file(path).resize(size))

    def begin_write_back(self, fd: int, offset: int, size: int) -> None:
        self._die_again()

    def fdatasync(self, fd: int) -> None:
        self._sync("fdatasync", self._open[fd])

    def fsync(self, fd: int) -> None:
        self._sync("fsync", self._open[fd])

    def drop_cache(self, fd: int, offset: int, size: int) -> None:
        self._die_again()
        file = self._open[fd]
        if not file.pending:
            file.forget_pages(offset, offset + size if size else None)

    def close(self, fd: int) -> None:
        self._die_again()
        self._open.pop(fd)

    def rename(self, old: Path, new: Path) -> None:
        self._die_again()
        file = self.disk.file(old)
        change = {old.name: None, new.name: file}
        self._do("rename", lambda: self.disk.directory(new.parent).change(change))

    def unlink(self, path: Path) -> None:
        self._die_again()
        self.disk.file(path)
        self._do("unlink", lambda: self.disk.directory(path.parent).change({path.name: None}))

    def sync_directory(self, path: Path) -> None:
        self._do("sync_directory", self.disk.directory(path).sync)

    # How it fails

    def _give(self, file: _File) -> int:
        self._next_fd += 1
        self._open[self._next_fd] = file
        return self._next_fd

    def _sync(self, operation: str, file: _File) -> None:
        """A sync that fails marks the pages clean: what it did not write is never written."""
        self._watch(operation, file)
        try:
            self._do(operation, file.sync)
        except OSError:
            self.failed_syncs.add(file)
            file.settle(self.disk.dice, self.disk.dice.random())
            raise

    def _watch(self, operation: str, file: _File) -> None:
        """Note what is done to a file after a sync of it has failed: nothing may be."""
        if file in self.failed_syncs:
            self.touched_after_failure.append(operation)

    def _do(
        self,
        operation: str,
        act: Callable[[], object],
        *,
        half: Callable[[], object] = lambda: None,
        needs_room: bool = False,
    ) -> None:
        self._die_again()
        self.operations += 1
        number = self.faults.pop(operation, None)
        if number is None and needs_room and self.disk.full:
            number = errno.ENOSPC
        if number is not None:
            raise OSError(number, errno.errorcode[number])
        if self.operations == self.crash_at:
            self.disk.dice.choice((act, half, lambda: None))()
            self.dead = True
            self.on_crash()
        self._die_again()
        act()

    def _die_again(self) -> None:
        if self.dead:
            raise SimulatedCrash("this process was killed")
