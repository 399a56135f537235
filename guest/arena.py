"""The arena: pages granted once for the life of a driver, from which it takes all its buffers."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Final

from cpp_ring import Hypervisor

PAGE: Final = 4096
SECTOR: Final = 512
"""Unit of allocation, and the least alignment of a buffer."""


@dataclass(frozen=True, slots=True, eq=False)
class Buffer:
    """A piece of the arena: `memory` is writable and as long as was asked for, `address` its grant-DMA address."""

    address: int
    memory: memoryview
    offset: int

    def piece(self, start: int = 0, size: int | None = None) -> tuple[int, int]:
        """(address, size) of a part of the buffer, for a descriptor."""
        return self.address + start, len(self.memory) - start if size is None else size


class Arena:
    """A first-fit allocator over `pages` granted pages. Not thread-safe."""

    def __init__(self, hypervisor: Hypervisor, backend: int, pages: int) -> None:
        """Raises HostError."""
        self._shared = hypervisor.share(backend, pages)
        self._memory = self._shared.memory
        self._free: list[tuple[int, int]] = [(0, pages * PAGE)]  # (offset, size), by offset, never adjacent
        self._taken: dict[int, int] = {}  # offset -> size

    @property
    def first_ref(self) -> int:
        return self._shared.first_ref

    @property
    def pages(self) -> int:
        return self._shared.pages

    @property
    def free_bytes(self) -> int:
        return sum(size for _, size in self._free)

    def allocate(self, size: int, align: int = SECTOR) -> Buffer | None:
        """A buffer of `size` > 0 bytes at a multiple of `align` (itself one of 512); None while there is no room."""
        taken = -(-size // SECTOR) * SECTOR
        for i, (offset, length) in enumerate(self._free):
            start = -(-offset // align) * align
            if start + taken > offset + length:
                continue
            rest = [(offset, start - offset), (start + taken, offset + length - start - taken)]
            self._free[i : i + 1] = [(at, left) for at, left in rest if left]
            self._taken[start] = taken
            return Buffer(self._shared.address(start), self._memory[start : start + size], start)
        return None

    def free(self, buffer: Buffer) -> None:
        """Gives a buffer back, once the device is done with it. KeyError: it was given back before."""
        start = buffer.offset
        end = start + self._taken.pop(start)
        i = bisect_left(self._free, (start, 0))
        if i < len(self._free) and self._free[i][0] == end:
            end += self._free.pop(i)[1]
        if i > 0 and sum(self._free[i - 1]) == start:
            i -= 1
            start = self._free.pop(i)[0]
        self._free.insert(i, (start, end - start))

    def close(self) -> None:
        """Withdraws the pages; a backend that still maps them keeps them until it lets go."""
        self._shared.close()
