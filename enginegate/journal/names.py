"""Which products, users and engines the facts of a finished segment name, in a few kilobytes.

A reader of the audit trail who asks for one user would else read the whole history again
for each question.
"""

from collections.abc import Collection, Iterable
from typing import Final

from enginegate.facts import AnyFact

BITS: Final = 1 << 18
"""32 KiB a segment. With the 20,000 names of a full one, one in 500 looks named and is not."""

_MASK: Final = BITS - 1
_SHIFTS: Final = (0, 20, 40)


class Names:
    """A Bloom filter (Bloom, 1970): a name that was added is found, one that was not hardly ever.

    Of this process only, for strings hash anew in each.
    """

    __slots__ = ("_bits",)

    def __init__(self, names: Iterable[str]) -> None:
        self._bits = bytearray(BITS // 8)
        for name in names:
            for place in _places(name):
                self._bits[place >> 3] |= 1 << (place & 7)

    def may_have(self, names: Collection[str]) -> bool:
        """Return whether all of them may be in it; False is certain."""
        bits = self._bits
        return all(bits[at >> 3] >> (at & 7) & 1 for name in names for at in _places(name))


def named(fact: AnyFact) -> Iterable[str]:
    """Return the ids of the product, the user and the engine that a fact is about."""
    ids = (getattr(fact, kind, None) for kind in ("product_id", "user_id", "engine_id"))
    return (one for one in ids if one is not None)


def _places(name: str) -> Iterable[int]:
    hashed = hash(name)
    return ((hashed >> shift) & _MASK for shift in _SHIFTS)
