"""What frames carry: the header of a file, batches of facts, records of a snapshot.

Rules of the format: tags never change and are never used again, fields are only
added, with defaults. An unknown tag or a newer format is refused, not skipped:
skipping would be silent loss.
"""

from collections.abc import Iterator, Sequence
from typing import get_args

from msgspec import DecodeError, Raw, Struct, msgpack

from enginegate import __version__
from enginegate.facts import AnyFact
from enginegate.journal.frames import MAX_PAYLOAD_BYTES
from enginegate.model import SnapshotRecord

FORMAT = 1  # what this version writes, and the newest it reads

MAX_FACT_BYTES = MAX_PAYLOAD_BYTES - 64  # what a frame's own bytes leave to the facts in it

SEGMENT, SNAPSHOT = "segment", "snapshot"


class FileHeader(Struct, frozen=True, kw_only=True):
    """The first frame of every file.

    `reader` is the lowest format a reader must know. `sequence` is for a segment the
    number of this very frame, for a snapshot the last frame it holds; `number` is the
    first fact number after that; `crc` is the chain's checksum before it. `size_bytes`
    is the preallocated size (0 for snapshots). `genesis` marks a segment before which
    there was nothing: it needs no snapshot.
    """

    kind: str
    instance: str
    epoch: int
    sequence: int
    number: int
    crc: int
    key_id: str
    created_at_ms: int
    size_bytes: int = 0
    genesis: bool = False
    format: int = FORMAT
    reader: int = FORMAT
    software: str = __version__


class SnapshotEnd(Struct, frozen=True, array_like=True):
    """The last frame of a snapshot: how many records went before it."""

    records: int


_encoder = msgpack.Encoder()
_header_decoder = msgpack.Decoder(FileHeader)
_facts_decoder = msgpack.Decoder(tuple[int, list[AnyFact]])
_records_decoder = msgpack.Decoder(list[SnapshotRecord])
_end_decoder = msgpack.Decoder(SnapshotEnd)

_TAGS = frozenset(kind.__struct_config__.tag for kind in get_args(AnyFact))


class UnreadableError(Exception):
    """A payload whose checksum is right but which this version cannot take."""


def encode_header(header: FileHeader) -> bytes:
    return _encoder.encode(header)


def decode_header(payload: memoryview) -> FileHeader:
    """Raises UnreadableError for a newer format."""
    try:
        header = _header_decoder.decode(payload)
    except DecodeError as error:
        raise UnreadableError(f"a file header of unknown shape: {error}") from error
    if header.reader > FORMAT:
        raise UnreadableError(
            f"written by a newer version ({header.software}, format {header.format});"
            f" this one reads format {FORMAT}"
        )
    return header


def encode_fact(fact: AnyFact) -> Raw:
    """Raises TypeError, ValueError or OverflowError where the fact cannot be written."""
    encoded = _encoder.encode(fact)
    if len(encoded) > MAX_FACT_BYTES:
        raise ValueError(f"a fact of {len(encoded)} bytes does not fit into a frame")
    return Raw(encoded)


def cut(facts: Sequence[Raw]) -> Iterator[list[Raw]]:
    """Cut a batch into what single frames hold."""
    batch: list[Raw] = []
    size = 0
    for fact in facts:
        length = memoryview(fact).nbytes
        if size + length > MAX_FACT_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(fact)
        size += length
    if batch:
        yield batch


def encode_facts(number: int, facts: Sequence[Raw]) -> bytes:
    return _encoder.encode((number, facts))


def decode_facts(payload: memoryview) -> tuple[int, list[AnyFact]]:
    """Raises UnreadableError, saying so where a newer version wrote the fact."""
    try:
        return _facts_decoder.decode(payload)
    except DecodeError as error:
        raise UnreadableError(_why(payload, error)) from error


def encode_records(records: Sequence[SnapshotRecord]) -> bytes:
    return _encoder.encode(records)


def decode_records(payload: memoryview) -> list[SnapshotRecord]:
    """Raises UnreadableError."""
    try:
        return _records_decoder.decode(payload)
    except DecodeError as error:
        raise UnreadableError(f"a snapshot record this version cannot read: {error}") from error


def encode_end(records: int) -> bytes:
    return _encoder.encode(SnapshotEnd(records))


def decode_end(payload: memoryview) -> int:
    """Raises UnreadableError."""
    try:
        return _end_decoder.decode(payload).records
    except DecodeError as error:
        raise UnreadableError(f"a snapshot end of unknown shape: {error}") from error


def _why(payload: memoryview, error: DecodeError) -> str:
    """Name the unknown tags, if that is what is wrong."""
    try:
        _, facts = msgpack.decode(payload, type=tuple[int, list[dict[str, object]]])
    except DecodeError:
        facts = []
    unknown = sorted({str(fact.get("t")) for fact in facts} - {str(tag) for tag in _TAGS})
    if unknown:
        return f"written by a newer version: unknown fact {', '.join(unknown)}"
    return f"a fact this version cannot read: {error}"
