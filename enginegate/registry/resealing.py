"""Sealed keys under another master key: what a journal was read back as, sealed anew.

With a key ring of several keys this happens at every start, before the fleet is built:
so the fresh snapshot of that start, and all that follow, want the first key alone.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from enginegate.facts import AnyFact
from enginegate.model import SnapshotRecord

T = TypeVar("T", bound=Struct)


class Sealer(Protocol):
    """Seals with its first key what any of its keys opens."""

    def reseal(self, engine_id: str, sealed: str) -> str: ...


def resealed_snapshot(sealer: Sealer, records: Iterable[SnapshotRecord]) -> list[SnapshotRecord]:
    """Return the records, sealed anew. Raises KeyUnsealError where no key opens one."""
    return [_resealed(sealer, record) for record in records]


def resealed_tail(sealer: Sealer, tail: Iterable[tuple[int, AnyFact]]) -> list[tuple[int, AnyFact]]:
    """Return the facts, sealed anew. Raises KeyUnsealError where no key opens one."""
    return [(number, _resealed(sealer, fact)) for number, fact in tail]


def _resealed(sealer: Sealer, holder: T) -> T:
    """Return a record or fact with the keys in it sealed anew; most hold none."""
    changes = dict(_changes(sealer, holder))
    return replace(holder, **changes) if changes else holder


def _changes(sealer: Sealer, holder: Any) -> Iterator[tuple[str, Any]]:
    if hasattr(holder, "sealed_key"):
        yield "sealed_key", sealer.reseal(holder.engine_id, holder.sealed_key)
    if (pending := getattr(holder, "pending_key", None)) is not None:
        sealed = sealer.reseal(holder.engine_id, pending.sealed_key)
        yield "pending_key", replace(pending, sealed_key=sealed)
