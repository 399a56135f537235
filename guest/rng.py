"""Entropy device driver (virtio 1.3 section 5.4)."""

from __future__ import annotations

import time
from typing import ClassVar

from guest.arena import PAGE
from guest.device import VirtioDevice
from guest.errors import RequestTimeout
from guest.queue import Chain


class RngDevice(VirtioDevice):
    """Random bytes from the host."""

    device_id: ClassVar[int | None] = 4
    arena_pages: ClassVar[int] = 4

    def start(self) -> None:
        self.find_queues(1)

    def read(self, size: int) -> bytes:
        """`size` random bytes. A device may give fewer than asked for in one request; it is asked again."""
        deadline = time.monotonic() + self.timeout
        parts = []
        while size > 0:
            if time.monotonic() > deadline:
                raise RequestTimeout(f"{size} random bytes are missing at the deadline")
            part = self._request(min(size, PAGE))
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _request(self, size: int) -> bytes:
        arena = self.transport.arena
        assert arena is not None
        buffer = arena.allocate(size)
        if buffer is None:
            raise RequestTimeout("the device holds every buffer of earlier requests that timed out")
        chain = Chain([], [buffer.piece()], (buffer,))
        queue = self.queues[0]
        self.perform(queue, chain)
        try:
            return bytes(buffer.memory[: chain.written or 0])
        finally:
            queue.free(chain)
