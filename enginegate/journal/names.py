"""Which products, users and engines the facts of a finished segment name, in a few bytes each.

A reader of the audit trail who asks for one user would else read the whole history again
for each question.
"""

from collections.abc import Collection, Iterable, Iterator
from typing import Final

from enginegate.facts import AnyFact

BITS_A_NAME: Final = 16
"""At least, so that one in 200 looks named and is not. The 20,000 of a full segment: 64 KiB."""

_LEAST, _MOST = 10, 20  # logarithms of how many bits there are; parts of one hash are the places
_SHIFTS: Final = (0, _MOST, 2 * _MOST)


class Names:
    """A Bloom filter (Bloom, 1970): a name that was added is found, one that was not hardly ever.

    Of this process only, for strings hash anew in each.
    """

    __slots__ = ("_bits", "_mask")

    def __init__(self, names: Collection[str]) -> None:
        wanted = (len(names) * BITS_A_NAME).bit_length()
        size = 1 << min(max(wanted, _LEAST), _MOST)
        self._bits, self._mask = bytearray(size // 8), size - 1
        for name in names:
            for place in self._places(name):
                self._bits[place >> 3] |= 1 << (place & 7)

    def may_have(self, names: Collection[str]) -> bool:
        """Return whether all of them may be in it; False is certain."""
        bits = self._bits
        return all(bits[at >> 3] >> (at & 7) & 1 for name in names for at in self._places(name))

    def _places(self, name: str) -> Iterator[int]:
        hashed = hash(name)
        return ((hashed >> shift) & self._mask for shift in _SHIFTS)


def named(fact: AnyFact) -> Iterable[str]:
    """Return the ids of the product, the user and the engine that a fact is about."""
    ids = (getattr(fact, kind, None) for kind in ("product_id", "user_id", "engine_id"))
    return (one for one in ids if one is not None)
