"""Snapshots: the whole state after some frame, as a file of its own.

Encoded in slices of 50 records, each a short turn of whoever encodes, and written in
larger blocks. A snapshot is valid whole or not at all.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from enginegate.journal import frames
from enginegate.journal.failures import live_file
from enginegate.journal.files import Rest, no_rest, publish, write_new
from enginegate.journal.frames import Link
from enginegate.journal.payloads import (
    SNAPSHOT,
    FileHeader,
    UnreadableError,
    decode_end,
    decode_header,
    decode_records,
    encode_end,
    encode_header,
    encode_records,
)
from enginegate.journal.storage import Storage
from enginegate.model import SnapshotRecord

SLICE_RECORDS = 50  # some 40 us of encoding
WRITE_BYTES = 32 * 1024  # worth a system call, and less than 0.1 ms of the processor
_START = Link(0, 0, 0)


def create_snapshot(
    storage: Storage, path: Path, encoded: Iterable[bytes], *, rest: Rest = no_rest
) -> int:
    """Write what `encode_snapshot` yields under a temporary name, synced and read back.

    Return its bytes. Raises JournalFull or JournalFailed; then no file is left.
    """
    fd, size = write_new(storage, path, _gathered(encoded), rest=rest)
    storage.close(fd)
    return size


def publish_snapshot(storage: Storage, path: Path) -> None:
    """Give the snapshot its real name, durably. Raises JournalFull or JournalFailed."""
    publish(storage, path)
    with live_file(path):
        storage.sync_directory(path.parent)


def encode_snapshot(header: FileHeader, records: Iterable[SnapshotRecord]) -> Iterator[bytes]:
    """Yield a snapshot's frames; each step encodes one."""
    block, link = frames.encode(frames.FILE, encode_header(header), _START)
    yield block
    remaining, total = iter(records), 0
    while part := list(islice(remaining, SLICE_RECORDS)):
        total += len(part)
        block, link = frames.encode(frames.RECORDS, encode_records(part), link)
        yield block
    block, link = frames.encode(frames.END, encode_end(total), link)
    yield block


def _gathered(encoded: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in pieces of at least `WRITE_BYTES`."""
    parts: list[bytes] = []
    size = 0
    for part in encoded:
        parts.append(part)
        size += len(part)
        if size >= WRITE_BYTES:
            yield b"".join(parts)
            parts, size = [], 0
    yield b"".join(parts)


def read_snapshot_header(data: bytes) -> FileHeader | None:
    """Return the header of a snapshot, None where its first frame is damaged.

    Raises UnreadableError where a newer version wrote it.
    """
    first = next(frames.walk(data, _START), None)
    if first is None or first.kind != frames.FILE:
        return None
    header = decode_header(first.payload)
    return header if header.kind == SNAPSHOT else None


def read_records(data: bytes) -> tuple[list[SnapshotRecord] | None, int]:
    """Return the records, None where the file is damaged, and where its last whole frame ends.

    Raises UnreadableError where a whole frame holds what this version cannot read.
    """
    records: list[SnapshotRecord] = []
    end = 0
    for frame in frames.walk(data, _START):
        end = frame.end
        if frame.kind == frames.RECORDS:
            records += decode_records(frame.payload)
        elif frame.kind == frames.END:
            whole = decode_end(frame.payload) == len(records) and end == len(data)
            return (records if whole else None), end
        elif frame.kind != frames.FILE:
            raise UnreadableError(f"a frame of kind {frame.kind} in a snapshot")
    return None, end
