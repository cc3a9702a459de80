"""Which host ports are leased, one bit each. Pure: binds and probes nothing on the host."""

from collections.abc import Collection

PORT_MAX = 65_535


class PortMap:
    """The ports from `low` to `high`, both included, given out lowest first.

    Bit n of the bitmap stands for port `low + n`. It is bytes, so that to lease and release
    touches one of them (a start leases a port for every engine), and read as one int for the
    lowest clear bit, which comes out of integer arithmetic, without a loop over ports.
    The range may have been narrowed while an engine keeps its old port: a port
    outside is leased and released like any other, but never given out.
    """

    __slots__ = ("_bits", "_low", "_outside", "_size")

    def __init__(self, low: int, high: int) -> None:
        assert 0 < low <= high <= PORT_MAX
        self._low = low
        self._size = high - low + 1
        self._bits = bytearray((self._size + 7) // 8)
        self._outside: set[int] = set()

    def free_port(self, avoid: Collection[int] = ()) -> int | None:
        """Return the lowest free port, or None if there is none; leases nothing.

        `avoid` are ports that other programs hold right now.
        """
        taken = self._whole()
        for port in avoid:
            index = port - self._low
            if 0 <= index < self._size:
                taken |= 1 << index
        lowest_clear = ~taken & (taken + 1)
        index = lowest_clear.bit_length() - 1
        return self._low + index if index < self._size else None

    def lease(self, port: int) -> None:
        """Mark a free port as leased; leasing it twice is a bug."""
        index = port - self._low
        if 0 <= index < self._size:
            byte, bit = index >> 3, 1 << (index & 7)
            assert not self._bits[byte] & bit
            self._bits[byte] |= bit
        else:
            assert port not in self._outside
            self._outside.add(port)

    def release(self, port: int) -> None:
        """Mark a leased port as free; releasing it twice is a bug."""
        assert self.is_leased(port)
        index = port - self._low
        if 0 <= index < self._size:
            self._bits[index >> 3] &= ~(1 << (index & 7))
        else:
            self._outside.remove(port)

    def is_leased(self, port: int) -> bool:
        index = port - self._low
        if 0 <= index < self._size:
            return bool(self._bits[index >> 3] >> (index & 7) & 1)
        return port in self._outside

    @property
    def leased(self) -> set[int]:
        """Every leased port, those outside the range included."""
        whole = self._whole()
        inside = {self._low + n for n in range(self._size) if whole >> n & 1}
        return inside | self._outside

    @property
    def leased_count(self) -> int:
        return self._whole().bit_count() + len(self._outside)

    def _whole(self) -> int:
        return int.from_bytes(self._bits, "little")
