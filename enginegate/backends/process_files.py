"""The files of the process backend: engines' data, their keys, logs and run records.

    engines/{engine_id}/                      the engine's own data, 0700
    engines/{engine_id}/.enginegate/key_hash  one hash a line, replaced atomically
    logs/{engine_id}.log, .log.1              what it says, the older half second
    run/{engine_id}.json                      how its process is found again

Everything here blocks and belongs into a thread. Nothing is synced: after a power
failure no process is left that a record could lead to, and `start` writes keys anew.
"""

import errno
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from enginegate.backends import proc

LOG_MAX_BYTES = 1_048_576
LINE_MAX_BYTES = 4096
REMOVE_ATTEMPTS = 5
REMOVE_PAUSE_S = 0.05
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


class Record(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a process is found again; without a pid: a start was begun at `start_ticks`.

    `delivered` are the hashes that a live rotation gave to the running process.
    """

    engine_id: str
    engine_version: str
    port: int
    key_hash: str
    boot_id: str
    start_ticks: int
    pid: int | None = None
    delivered: tuple[str, ...] = ()


class Files:
    """Where everything lies, and how it is written and removed."""

    def __init__(self, data_dir: Path) -> None:
        root = data_dir.resolve()  # what ENGINE_DATA_DIR says must not depend on where we run
        self._engines, self._logs, self._run = root / "engines", root / "logs", root / "run"

    def prepare(self) -> None:
        for folder in (self._engines, self._logs, self._run):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def data(self, engine_id: str) -> Path:
        return self._engines / engine_id

    def key_file(self, engine_id: str) -> Path:
        return self.data(engine_id) / ".enginegate" / "key_hash"

    def log(self, engine_id: str) -> Path:
        return self._logs / f"{engine_id}.log"

    def owner(self, data_dir: str) -> str | None:
        """Return whose data directory this is, None where it is none of ours."""
        path = Path(data_dir)
        return path.name if path.parent == self._engines else None

    def write_key(self, engine_id: str, hashes: Sequence[str]) -> None:
        """Put the hashes into force; a reader sees the old file or the new one, whole."""
        content = "".join(f"{one}\n" for one in hashes).encode("ascii")
        path = self.key_file(engine_id)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if _read(path) != content:
            _replace(path, content)

    def write_record(self, record: Record) -> None:
        _replace(self._run / f"{record.engine_id}.json", msgspec.json.encode(record))

    def records(self) -> list[Record]:
        """Return what can be read; an engine whose record is spoilt is found by its environ."""
        found: list[Record] = []
        for path in sorted(self._run.glob("*.json")):
            with suppress(OSError, msgspec.DecodeError):
                found.append(msgspec.json.decode(path.read_bytes(), type=Record))
        return found

    def open_log(self, engine_id: str) -> int:
        """Open the log for a process to append to."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(self.log(engine_id), flags, 0o600)

    def tail(self, engine_id: str, lines: int) -> list[str]:
        """Return the last lines, across the seam between the two files."""
        wanted = max(lines, 0)
        new = _tail(self.log(engine_id), wanted)
        if len(new) < wanted:
            new = _tail(_older(self.log(engine_id)), wanted - len(new)) + new
        return new

    def trim_logs(self) -> None:
        """Keep the end of every log that grew too large as `.log.1`, and empty it.

        Copied and truncated, since the engine holds it open; what it writes in between
        is lost. On a full disk so is the copy: bounded comes first.
        """
        for path in self._logs.glob("*.log"):
            with suppress(FileNotFoundError):
                if path.stat().st_size > LOG_MAX_BYTES:
                    _keep_end(path)
                    os.truncate(path, 0)

    def disown(self, engine_id: str) -> None:
        """Remove what is ours; the engine's data stays."""
        log = self.log(engine_id)
        for path in (log, _older(log), self._run / f"{engine_id}.json"):
            path.unlink(missing_ok=True)  # the record last: it tells that something is left

    def remove(self, engine_id: str) -> None:
        """Remove everything, also while somebody still writes into it."""
        self._remove_data(self.data(engine_id))
        self.disown(engine_id)

    @staticmethod
    def _remove_data(path: Path) -> None:
        for attempt in range(REMOVE_ATTEMPTS):
            try:
                shutil.rmtree(path)
            except PermissionError:
                _unlock(path)
            except OSError:
                if attempt == REMOVE_ATTEMPTS - 1 and path.exists():
                    raise
            if not path.exists():
                return
            time.sleep(REMOVE_PAUSE_S)
        raise OSError(errno.EACCES, "cannot be removed", str(path))


def ticks_now() -> int:
    """Return the present in the unit of `Stat.start_ticks`."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * proc.TICKS_PER_S)


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)  # left by a crash, perhaps with another mode
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
    except OSError:
        temporary.unlink()  # half a file helps nobody, and its room may help somebody
        raise
    temporary.replace(path)


def _keep_end(log: Path) -> None:
    try:
        _replace(_older(log), _end_of(log, LOG_MAX_BYTES))
    except OSError as fault:
        if fault.errno not in NO_ROOM:
            raise


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _older(log: Path) -> Path:
    return log.with_name(f"{log.name}.1")


def _end_of(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - most))
        return file.read(most)


def _tail(path: Path, lines: int) -> list[str]:
    try:
        text = _end_of(path, LOG_MAX_BYTES)
    except FileNotFoundError:
        return []
    found = text.splitlines()[-lines:] if lines else []
    return [line[:LINE_MAX_BYTES].decode("utf-8", "replace") for line in found]


def _unlock(path: Path) -> None:
    """Let folders that their engine made unwritable be removed all the same."""
    with suppress(OSError):
        path.chmod(0o700)
        for folder, names, _ in os.walk(path):
            for inner in (Path(folder, name) for name in names):
                if not inner.is_symlink():  # what it leads to is not ours
                    inner.chmod(0o700)
