"""The device's side of one virtqueue of `RawBackend`."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from tests.raw_backend import RawBackend


class RawQueue:
    """The device's side of a virtqueue that the driver set up without indirect descriptors and event index."""

    def __init__(self, backend: RawBackend, index: int) -> None:
        self._backend = backend
        self.geometry = backend.device.queues[index]
        self.size, descriptors, driver, device = self.geometry
        self._base = descriptors
        pages = -(-(device - descriptors + 6 + 8 * self.size + (descriptors & 0xFFF)) // 4096)
        self._pages = backend.hypervisor.map(backend.frontend, (descriptors & ~(1 << 63)) >> 12, pages)
        self.memory = self._pages.memory[descriptors & 0xFFF :]
        self._avail = driver - descriptors
        self._used = device - descriptors
        self._seen = 0
        self.used_idx = 0
        self.port = backend.queue_port(index)

    def available(self) -> Iterator[int]:
        """Heads that were offered since the last call."""
        (idx,) = struct.unpack("<H", self.memory[self._avail + 2 : self._avail + 4])
        while self._seen != idx:
            at = self._avail + 4 + 2 * (self._seen % self.size)
            self._seen = (self._seen + 1) & 0xFFFF
            yield struct.unpack("<H", self.memory[at : at + 2])[0]

    def chain(self, head: int) -> list[tuple[int, int, bool]]:
        """(address, bytes, writable) of each piece."""
        pieces = []
        while True:
            address, size, flags, after = struct.unpack("<QIHH", self.memory[16 * head : 16 * head + 16])
            pieces.append((address, size, bool(flags & 2)))
            if not flags & 1:
                return pieces
            head = after

    def payload(self, address: int, size: int) -> memoryview:
        """Guest memory, mapped."""
        offset = address & 0xFFF
        pages = -(-(offset + size) // 4096)
        first_ref = (address & ~(1 << 63)) >> 12
        return self._backend.hypervisor.map(self._backend.frontend, first_ref, pages).memory[offset : offset + size]

    def put_used(self, head: int, written: int) -> None:
        """Writes the next used element; not visible before `publish`."""
        at = self._used + 4 + 8 * (self.used_idx % self.size)
        self.memory[at : at + 8] = struct.pack("<II", head, written)
        self.used_idx = (self.used_idx + 1) & 0xFFFF

    def publish(self, used_idx: int | None = None) -> None:
        """Sets used.idx and sends the event."""
        idx = self.used_idx if used_idx is None else used_idx
        self.memory[self._used + 2 : self._used + 4] = struct.pack("<H", idx)
        self._backend.events.notify(self.port)

    def use(self, head: int, written: int) -> None:
        self.put_used(head, written)
        self.publish()
