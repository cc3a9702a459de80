"""Which host ports are leased, one bit each. Pure: binds and probes nothing on the host."""

from collections.abc import Collection

PORT_MAX = 65_535


class PortMap:
    """The ports from `low` to `high`, both included, given out lowest first.

    One int is the bitmap: bit n stands for port `low + n`, and the lowest clear bit
    comes out of whole-integer arithmetic, without a loop over ports.
    The range may have been narrowed while an engine keeps its old port: a port
    outside is leased and released like any other, but never given out.
    """

    __slots__ = ("_low", "_outside", "_size", "_taken")

    def __init__(self, low: int, high: int) -> None:
        assert 0 < low <= high <= PORT_MAX
        self._low = low
        self._size = high - low + 1
        self._taken = 0
        self._outside: set[int] = set()

    def free_port(self, avoid: Collection[int] = ()) -> int | None:
        """Return the lowest free port, or None if there is none; leases nothing.

        `avoid` are ports that other programs hold right now.
        """
        taken = self._taken
        for port in avoid:
            taken |= self._bit(port)
        lowest_clear = ~taken & (taken + 1)
        index = lowest_clear.bit_length() - 1
        return self._low + index if index < self._size else None

    def lease(self, port: int) -> None:
        """Mark a free port as leased; leasing it twice is a bug."""
        assert not self.is_leased(port)
        if bit := self._bit(port):
            self._taken |= bit
        else:
            self._outside.add(port)

    def release(self, port: int) -> None:
        """Mark a leased port as free; releasing it twice is a bug."""
        assert self.is_leased(port)
        self._taken &= ~self._bit(port)
        self._outside.discard(port)

    def is_leased(self, port: int) -> bool:
        return bool(self._taken & self._bit(port)) or port in self._outside

    @property
    def leased(self) -> set[int]:
        """Every leased port, those outside the range included."""
        inside = {self._low + n for n in range(self._size) if self._taken >> n & 1}
        return inside | self._outside

    @property
    def leased_count(self) -> int:
        return self._taken.bit_count() + len(self._outside)

    def _bit(self, port: int) -> int:
        """Return the port's bit, or 0 for a port outside the range."""
        index = port - self._low
        return 1 << index if 0 <= index < self._size else 0
