"""What the journal tests share: facts, a manual clock, storage that fails, a disk that forgets."""

import asyncio
import errno
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from enginegate.facts import AnyFact, Booted, Destroyed, Noted, Provisioned
from enginegate.journal import Journal, OsStorage
from enginegate.model import Engine, Policy, Product, SnapshotRecord, Status

KEY = "key-1"
SEGMENT_BYTES = 16 * 1024


def provisioned(index: int = 0) -> Provisioned:
    return Provisioned(
        at_ms=1_700_000_000_000 + index,
        actor="acme",
        engine_id=f"engine-{index}",
        product_id="product-1",
        user_id=f"user-{index}",
        port=9001 + index,
        engine_version="my-engine:1",
        sealed_key="sealed-secret",
        key_hash="hash-secret",
    )


def booted(index: int = 0) -> Booted:
    return Booted(
        at_ms=1_700_000_000_500 + index,
        engine_id=f"engine-{index}",
        product_id="product-1",
        user_id=f"user-{index}",
        via="provision",
        duration_ms=12.5,
    )


def destroyed(index: int = 0) -> Destroyed:
    return Destroyed(
        at_ms=1_700_000_000_900,
        engine_id=f"engine-{index}",
        product_id="product-1",
        user_id=f"user-{index}",
    )


def note(index: int = 0, *, size: int = 0) -> Noted:
    return Noted(at_ms=index, action="recovered", metadata={"text": "x" * size, "n": index})


def product() -> Product:
    return Product(
        product_id="product-1",
        slug="acme",
        display_name="Acme",
        policy=Policy(max_engines=3),
        key_hash="hash-secret",
        created_at_ms=1,
    )


def engine(index: int = 0) -> Engine:
    return Engine(
        engine_id=f"engine-{index}",
        product_id="product-1",
        user_id=f"user-{index}",
        status=Status.RUNNING,
        port=9001 + index,
        engine_version="my-engine:1",
        sealed_key="sealed-secret",
        key_hash="hash-secret",
        created_at_ms=1,
        changed_at_ms=2,
    )


def no_check(directory: Path) -> list[str]:
    return []


@contextmanager
def opened(directory: Path, **options: object) -> Iterator[Journal]:
    """Open as a start does, without `begin`; close without a word afterwards."""
    settings = {"key_id": KEY, "segment_bytes": SEGMENT_BYTES, "check": no_check} | options
    journal = Journal.open(directory, **settings)  # type: ignore[arg-type]
    try:
        yield journal
    finally:
        journal.close()


@contextmanager
def begun(
    directory: Path, records: list[SnapshotRecord] | None = None, **options: object
) -> Iterator[Journal]:
    with opened(directory, **options) as journal:
        journal.begin(records or [])
        yield journal


def crash(journal: Journal) -> None:
    """Let go of a journal as a killed process does: nothing more is written."""
    journal.fail("crashed")
    journal.close()


def tail_of(directory: Path, **options: object) -> list[tuple[int, AnyFact]]:
    with opened(directory, **options) as journal:
        return journal.tail


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("wal-*.egj"), key=lambda path: path.name.split("-")[2])


def snapshots(directory: Path) -> list[Path]:
    return sorted(directory.glob("snap-*.egs"), key=lambda path: path.name.split("-")[2])


class ManualClock:
    """Time that stands still until a test moves it."""

    def __init__(self) -> None:
        self.time = 0.0
        self.wall = 1_700_000_000_000
        self.step = 0.0  # how much each look at the clock takes
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def now(self) -> float:
        self.time += self.step
        return self.time

    def wall_ms(self) -> int:
        return self.wall

    @property
    def sleepers(self) -> int:
        """How many wait for time to pass."""
        return len(self._sleepers)

    async def sleep(self, seconds: float) -> None:
        waiting = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.time + seconds, waiting))
        await waiting

    def advance(self, seconds: float) -> None:
        self.time += seconds
        due = [entry for entry in self._sleepers if entry[0] <= self.time]
        self._sleepers = [entry for entry in self._sleepers if entry[0] > self.time]
        for _, waiting in due:
            if not waiting.done():
                waiting.set_result(None)


def grow(directory: Path, starts: int, clock: ManualClock) -> None:
    """Start, append one fact, stop; a day passes in between."""
    for index in range(starts):
        with begun(directory, [product()], clock=clock) as journal:
            journal.append([note(index, size=1000)])
        clock.wall += 86_400_000


class FaultyStorage(OsStorage):
    """The real file system, with faults on request and a list of what was asked.

    `faults` maps an operation to the errno it fails with; `once` takes it off again after
    the first time. `short` is how many bytes a write takes at most.
    """

    def __init__(self) -> None:
        self.faults: dict[str, int] = {}
        self.once = False
        self.only = ""  # where faults strike: part of the path, for operations that have one
        self.short: int | None = None
        self.zero_writes = False
        self.lies = False
        self.asked: list[str] = []

    def _pass(self, operation: str, path: Path | None = None) -> None:
        self.asked.append(operation)
        number = self.faults.get(operation)
        if number is None or (path is not None and self.only not in path.name):
            return
        if self.once:
            del self.faults[operation]
        raise OSError(number, errno.errorcode[number])

    def create(self, path: Path) -> int:
        self._pass("create", path)
        return super().create(path)

    def open(self, path: Path) -> int:
        self._pass("open", path)
        return super().open(path)

    def make_directory(self, path: Path) -> None:
        self._pass("make_directory", path)
        super().make_directory(path)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        data = super().pread(fd, size, offset)
        return bytes(len(data)) if self.lies else data

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        self._pass("pwrite")
        if self.short is not None:
            if self.zero_writes and self.asked[-2:] == ["pwrite", "pwrite"]:
                return 0
            data = memoryview(data)[: self.short]
        return super().pwrite(fd, data, offset)

    def allocate(self, fd: int, size: int) -> None:
        self._pass("allocate")
        super().allocate(fd, size)

    def truncate(self, path: Path, size: int) -> None:
        self._pass("truncate", path)
        super().truncate(path, size)

    def fdatasync(self, fd: int) -> None:
        self._pass("fdatasync")
        super().fdatasync(fd)

    def fsync(self, fd: int) -> None:
        self._pass("fsync")
        super().fsync(fd)

    def rename(self, old: Path, new: Path) -> None:
        self._pass("rename", new)
        super().rename(old, new)

    def unlink(self, path: Path) -> None:
        self._pass("unlink", path)
        super().unlink(path)

    def sync_directory(self, path: Path) -> None:
        self._pass("sync_directory")
        super().sync_directory(path)


class PowerCutError(Exception):
    """The lights went out at this operation."""


class _Inode:
    def __init__(self) -> None:
        self.now = bytearray()
        self.durable = bytearray()


class ForgetfulDisk:
    """A disk in memory that keeps, at a power cut, only what was synced, and some of the rest.

    `image` writes what a machine would find after the cut: each 512-byte sector of unsynced
    content is there or not, sizes and directory entries likewise, by a seeded choice.
    """

    def __init__(self, cut_after: int | None = None) -> None:
        self.cut_after = cut_after
        self.operations = 0
        self._names: dict[str, _Inode] = {}
        self._durable_names: dict[str, _Inode] = {}
        self._pending: list[tuple[str, str]] = []
        self._open: dict[int, _Inode] = {}
        self._next = 100

    def _step(self) -> None:
        self.operations += 1
        if self.cut_after is not None and self.operations > self.cut_after:
            raise PowerCutError

    def names(self, directory: Path) -> list[str]:
        return list(self._names)

    def make_directory(self, path: Path) -> None:
        self._step()

    def create(self, path: Path) -> int:
        self._step()
        self._names[path.name] = _Inode()
        return self._give(path.name)

    def open(self, path: Path) -> int:
        return self._give(path.name)

    def _give(self, name: str) -> int:
        if name not in self._names:
            raise FileNotFoundError(errno.ENOENT, name)
        self._next += 1
        self._open[self._next] = self._names[name]
        return self._next

    def size(self, fd: int) -> int:
        return len(self._open[fd].now)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return bytes(self._open[fd].now[offset : offset + size])

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        self._step()
        inode = self._open[fd]
        inode.now.extend(bytes(max(0, offset + len(data) - len(inode.now))))
        inode.now[offset : offset + len(data)] = data
        return len(data)

    def allocate(self, fd: int, size: int) -> None:
        self._step()
        inode = self._open[fd]
        inode.now.extend(bytes(size - len(inode.now)))

    def free_bytes(self, directory: Path) -> int:
        return 1 << 40

    def truncate(self, path: Path, size: int) -> None:
        self._step()
        inode = self._names[path.name]
        del inode.now[size:]
        del inode.durable[size:]

    def begin_write_back(self, fd: int, offset: int, size: int) -> None:
        pass

    def fdatasync(self, fd: int) -> None:
        self.fsync(fd)

    def fsync(self, fd: int) -> None:
        self._step()
        inode = self._open[fd]
        inode.durable = bytearray(inode.now)

    def drop_cache(self, fd: int, offset: int, size: int) -> None:
        pass

    def close(self, fd: int) -> None:
        del self._open[fd]

    def rename(self, old: Path, new: Path) -> None:
        self._step()
        self._names[new.name] = self._names.pop(old.name)
        self._pending.append((old.name, new.name))

    def unlink(self, path: Path) -> None:
        self._step()
        del self._names[path.name]

    def sync_directory(self, path: Path) -> None:
        self._step()
        self._durable_names = dict(self._names)

    def image(self, directory: Path, seed: int) -> None:
        """Write the files as found after the cut into a real directory."""
        choose = random.Random(seed)
        names = dict(self._durable_names)
        for name, inode in self._names.items():
            if name not in names and choose.random() < 0.5:
                names[name] = inode
        for name in self._durable_names:
            if name not in self._names and choose.random() < 0.5:
                del names[name]
        directory.mkdir(mode=0o700)
        for name, inode in names.items():
            (directory / name).write_bytes(_survivors(inode, choose))
            (directory / name).chmod(0o600)


def _survivors(inode: _Inode, choose: random.Random) -> bytes:
    found = bytearray(inode.durable)
    if len(inode.now) > len(found) and choose.random() < 0.8:
        found.extend(bytes(len(inode.now) - len(found)))
    for start in range(0, len(found), 512):
        if choose.random() < 0.5:
            found[start : start + 512] = inode.now[start : start + 512]
    return bytes(found)
