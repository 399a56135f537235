"""The driver of the `Echo` model and its like."""

from __future__ import annotations

from guest.device import VirtioDevice
from guest.queue import Chain


class EchoDriver(VirtioDevice):
    arena_pages = 2

    def start(self) -> None:
        self.find_queues(1)

    def submit(self, data: bytes) -> Chain:
        """A request that asks for `data` back."""
        arena = self.transport.arena
        assert arena is not None
        out = arena.allocate(len(data))
        back = arena.allocate(len(data))
        assert out is not None
        assert back is not None
        out.memory[: len(data)] = data
        chain = Chain([out.piece()], [back.piece()], (out, back))
        self.queues[0].submit(chain)
        return chain

    def echo(self, data: bytes) -> bytes:
        chain = self.submit(data)
        self.complete(self.queues[0], chain)
        try:
            return bytes(chain.buffers[1].memory[: chain.written or 0])
        finally:
            self.queues[0].free(chain)
