"""What a driver keeps of one virtqueue: its requests, in the order they were submitted, until the device is done.

The ring may die under the requests (emulator restart, device reset): they stay here, and `restart` offers them again
on the new ring. Nothing is lost, nothing is reported twice; a request the device was working on runs once more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from cpp_ring import ChannelError, DriverQueue, QueueFull
from guest.arena import Arena, Buffer
from guest.errors import DriverError

Pieces = Sequence[tuple[int, int]]
"""(grant-DMA address, bytes) for each descriptor."""


@dataclass(slots=True, eq=False)
class Chain:
    """One request: what the device reads, what it may write, and the buffers to free with it."""

    readable: Pieces
    writable: Pieces
    buffers: tuple[Buffer, ...] = ()
    written: int | None = None
    """Bytes the device wrote; None until it is done."""
    abandoned: bool = False
    """Nobody waits for it: freed when it comes back, never repeated."""

    @property
    def done(self) -> bool:
        return self.written is not None


class RequestQueue:
    """One virtqueue of a driver. `submit`, `reap` and `kick` never wait. Not thread-safe."""

    def __init__(self, ring: DriverQueue, arena: Arena | None, on_used: Callable[[Chain], None] | None = None) -> None:
        """`on_used` is called for every chain that comes back, in order."""
        self.ring = ring
        self.on_used = on_used
        self.completed = 0
        self._arena = arena
        self._in_flight: dict[int, Chain] = {}  # by head, in the order of submission
        self._backlog: deque[Chain] = deque()  # does not fit into the ring yet

    def __len__(self) -> int:
        """Requests that the device has not given back."""
        return len(self._in_flight) + len(self._backlog)

    def submit(self, chain: Chain) -> None:
        """Offers a request, now or as soon as the ring has room. ValueError: it never fits into this ring."""
        if len(chain.readable) + len(chain.writable) > self.ring.size:
            raise ValueError(f"{len(chain.readable) + len(chain.writable)} pieces in a queue of {self.ring.size}")
        self._backlog.append(chain)
        self._fill()

    def reap(self) -> int:
        """Takes back what the device is done with; how many. Raises ChannelError when the device lies."""
        count = 0
        # One ring full at most: a device that answers as fast as we resubmit must not keep us here.
        while count < self.ring.size and (used := self.ring.pop()) is not None:
            head, written = used
            count += 1
            chain = self._in_flight.pop(head, None)
            if chain is None:
                continue  # offered past this queue, straight to its ring
            chain.written = written
            if chain.abandoned:
                self.free(chain)
            elif self.on_used is not None:
                self.on_used(chain)
        self.completed += count
        if count:
            self._fill()
        return count

    def harvest(self) -> None:
        """The last look at a ring whose device is gone: completions it published count."""
        with suppress(ChannelError, DriverError):  # what is in flight after a lie is repeated
            self.reap()

    def abandon(self, chain: Chain) -> None:
        """Nobody waits for this request any longer. Its buffers are the device's until it comes back, or a reset."""
        if chain.done:
            self.free(chain)
        elif chain in self._backlog:
            self._backlog.remove(chain)
            self.free(chain)
        chain.abandoned = True

    def free(self, chain: Chain) -> None:
        """Gives the buffers of a chain back to the arena."""
        if self._arena is not None:
            for buffer in chain.buffers:
                self._arena.free(buffer)
        chain.buffers = ()

    def attach(self, ring: DriverQueue) -> None:
        """The device was reset and gets this new ring; `restart` follows once it runs."""
        self.ring = ring
        self._backlog.extendleft(reversed(self._in_flight.values()))
        self._in_flight.clear()
        for chain in [chain for chain in self._backlog if chain.abandoned]:
            self._backlog.remove(chain)
            self.free(chain)

    def restart(self) -> None:
        """Offers again, in order, what the device had not completed before its reset."""
        self._fill()

    def _fill(self) -> None:
        added = False
        while self._backlog:
            chain = self._backlog[0]
            try:
                head = self.ring.add(chain.readable, chain.writable)
            except QueueFull:
                break
            self._backlog.popleft()
            self._in_flight[head] = chain
            added = True
        if added:
            self.ring.kick()
