"""The bytes of a frame, and the verdict on bytes that are none. Pure: no I/O, no clock.

A frame is one commit batch: a header of 32 bytes with a checksum of its own, the
payload, zero padding, an end mark of 4 bytes; always a multiple of 8 bytes long.

- The payload checksum is carried on from frame to frame, and each header repeats the
  one before it: a lost, swapped or stale frame breaks the chain.
- The header checksum is seeded with the checksum of the file's first payload, so a
  frame of another file, or one that somebody smuggled into a payload, is no frame here.
- The last byte of the end mark has several bits set. If it is zero, the frame never
  arrived whole; one flipped bit cannot fake that.

Exactly one frame is ever in flight. So a whole frame behind a broken one proves that
the broken one had been acknowledged: damage is told from a torn tail by proof.
"""

from collections.abc import Iterator
from enum import Enum
from struct import Struct
from typing import NamedTuple
from zlib import crc32

MAGIC = b"EGJ1"
END_MARK = b"\x9e\x3d\xc5\xfb"
HEADER_BYTES = 32
MAX_PAYLOAD_BYTES = 4 * 1024 * 1024
SECTOR_BYTES = 512

FILE, FACTS, SEAL, RECORDS, END = 1, 2, 3, 4, 5
_KINDS = frozenset({FILE, FACTS, SEAL, RECORDS, END})

_HEAD = Struct("<4sBBHQIII")
_HEADER = Struct("<4sBBHQIIII")
_ALIGN = 8
_ZEROS = bytes(_ALIGN)
_ZERO_BLOCK = bytes(4096)


class Link(NamedTuple):
    """Where the chain of frames stands: the last sequence, its running checksum, the file's seed.

    `seed` is 0 before the first frame of a file, and that frame's checksum after it.
    """

    sequence: int
    crc: int
    seed: int


class Frame(NamedTuple):
    """A whole frame: where it lies (byte offsets in its file) and what it is."""

    kind: int
    sequence: int
    offset: int
    payload: memoryview
    end: int
    crc: int


class Header(NamedTuple):
    """A header whose checksum is right; the rest of its frame may still be bad."""

    kind: int
    flags: int
    size: int
    sequence: int
    length: int
    previous: int
    crc: int


class Finding(Enum):
    """What the bytes are, where no whole frame begins."""

    CLEAN = "clean"
    TORN = "torn"
    SUSPECT = "suspect"
    DAMAGE = "damage"
    NEWER = "newer"


class Verdict(NamedTuple):
    """A finding with its reason in words, and where the last byte that is not zero ends."""

    finding: Finding
    reason: str
    used: int


def frame_bytes(length: int) -> int:
    """Return the size of a frame with a payload of `length` bytes."""
    return (HEADER_BYTES + length + len(END_MARK) + _ALIGN - 1) // _ALIGN * _ALIGN


def encode(kind: int, payload: bytes, link: Link) -> tuple[bytes, Link]:
    """Return the next frame after `link`, and the link after that frame."""
    crc = crc32(payload, link.crc)
    sequence, size = link.sequence + 1, frame_bytes(len(payload))
    head = _HEAD.pack(MAGIC, kind, 0, HEADER_BYTES, sequence, len(payload), link.crc, crc)
    padding = _ZEROS[: size - HEADER_BYTES - len(payload) - len(END_MARK)]
    seal = crc32(head, link.seed).to_bytes(4, "little")
    frame = b"".join((head, seal, payload, padding, END_MARK))
    return frame, Link(sequence, crc, link.seed or crc)


def header_at(data: bytes, offset: int, seed: int) -> Header | None:
    """Return the header at `offset`, or None where there is none with a right checksum."""
    if offset + HEADER_BYTES > len(data):
        return None
    magic, kind, flags, size, sequence, length, previous, crc, check = _HEADER.unpack_from(
        data, offset
    )
    if magic != MAGIC or check != crc32(data[offset : offset + HEADER_BYTES - 4], seed):
        return None
    return Header(kind, flags, size, sequence, length, previous, crc)


def walk(data: bytes, link: Link, offset: int = 0) -> Iterator[Frame]:
    """Yield whole frames that continue the chain; end silently at the first spot that does not.

    `data` is a whole file. What the end means is told by `judge`.
    """
    view = memoryview(data)
    sequence, chain, seed = link
    while (header := header_at(data, offset, seed)) is not None:
        kind, flags, size, number, length, previous, crc = header
        start = offset + HEADER_BYTES
        end = offset + frame_bytes(length)
        payload = view[start : start + length]
        if (
            number != sequence + 1
            or previous != chain
            or flags
            or size != HEADER_BYTES
            or kind not in _KINDS
            or end > len(data)
            or crc != crc32(payload, previous)
            or data[start + length : end] != _ZEROS[: end - start - length - 4] + END_MARK
        ):
            return
        yield Frame(kind, number, offset, payload, end, crc)
        sequence, chain, seed, offset = number, crc, seed or crc, end


def _used(data: bytes) -> int:
    """Return the length without the zeros at the end, passed over by whole blocks."""
    end = len(data)
    while data.endswith(_ZERO_BLOCK, 0, end):
        end -= len(_ZERO_BLOCK)
    start = max(end - len(_ZERO_BLOCK), 0)
    return start + len(data[start:end].rstrip(b"\0"))


def judge(data: bytes, link: Link, offset: int) -> Verdict:
    """Say what the bytes from `offset` on are, where `walk` found no whole frame to follow `link`.

    `data` is the last segment, read whole and not shorter than it was made.
    """
    used = _used(data)
    if used <= offset:
        return Verdict(Finding.CLEAN, "nothing but zeros to the end", offset)
    header = header_at(data, offset, link.seed)
    broken = _chain_fault(header, link) if header else None
    if broken:
        return Verdict(Finding.DAMAGE, broken, used)
    if header and (header.flags or header.size != HEADER_BYTES or header.kind not in _KINDS):
        return Verdict(Finding.NEWER, f"a frame of unknown kind {header.kind}", used)
    if (later := _later_frame(data, offset, link)) is not None:
        reason = f"frame {link.sequence + 1} is broken, but a whole header follows at {later}"
        return Verdict(Finding.DAMAGE, reason, used)
    if header:
        return _judge_body(data, offset, header, used)
    if used <= offset + HEADER_BYTES or _zero_sector(data, offset, used):
        return Verdict(Finding.TORN, "a frame whose header never arrived", used)
    return Verdict(Finding.SUSPECT, "a last frame with a broken header", used)


def _chain_fault(header: Header, link: Link) -> str | None:
    if header.sequence != link.sequence + 1:
        return f"frame {header.sequence} stands where {link.sequence + 1} belongs"
    if header.previous != link.crc:
        return f"frame {header.sequence} does not follow the frame before it"
    return None


def _judge_body(data: bytes, offset: int, header: Header, used: int) -> Verdict:
    """Judge the last frame by its body; its header is whole and in sequence."""
    end = offset + frame_bytes(header.length)
    if end > len(data):
        return Verdict(Finding.DAMAGE, "a frame longer than its file", used)
    if used > end:
        return Verdict(Finding.DAMAGE, f"bytes after the last frame, at {end}", used)
    if data[end - 1] == 0 or _zero_sector(data, offset, end):
        return Verdict(Finding.TORN, "a frame that never arrived whole", used)
    return Verdict(Finding.SUSPECT, "a complete last frame with a bad checksum", used)


def _later_frame(data: bytes, offset: int, link: Link) -> int | None:
    """Return where a header of a later sequence begins; frames begin at multiples of 8."""
    spot = data.find(MAGIC, offset + 1)
    while spot >= 0:
        header = header_at(data, spot, link.seed) if spot % _ALIGN == 0 else None
        if header and header.sequence > link.sequence + 1:
            return spot
        spot = data.find(MAGIC, spot + 1)
    return None


def _zero_sector(data: bytes, start: int, end: int) -> bool:
    """Return whether some 512-byte piece, as disks write them, of the range is all zero."""
    while start < end:
        stop = min(end, start - start % SECTOR_BYTES + SECTOR_BYTES)
        if not data[start:stop].strip(b"\0"):
            return True
        start = stop
    return False
