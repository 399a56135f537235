"""A device model without engine and guest: for the tests of this package and of devices outside the tree.

driver = MockDriver(Counter(start=5))
driver.start()
assert driver.send(0, writable=[8]) == (6).to_bytes(8, "little")
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from devices.device import Device
from devices.request import Hold, Request

# What the driver's buffers hold before the device writes to them.
UNWRITTEN = 0xA5


@dataclass(slots=True)
class Buffers:
    """The driver's memory of one request, and what became of it."""

    request: Request
    memory: list[bytearray]
    done: bool = False

    @property
    def written(self) -> bytes:
        """The first `used.len` bytes of the writable part."""
        return self.whole[: self.request.written]

    @property
    def whole(self) -> bytes:
        return b"".join(self.memory)


@dataclass
class MockDriver:
    """Driver and engine in one: `BackendServices` to the model, requests and configuration accesses to the test.

    The device is not opened; `device.open()` is the test's to call where the model needs it.
    """

    device: Device
    features: int = 0
    config_changes: int = 0
    resets_needed: int = 0
    _heads: int = 0
    _available: dict[int, deque[Buffers]] = field(default_factory=dict)
    _in_flight: dict[int, Buffers] = field(default_factory=dict)
    _watched: dict[int, Callable[[], None]] = field(default_factory=dict)
    _posted: deque[Callable[[], None]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.device.backend = self

    # ---- The driver ---------------------------------------------------------------------------------------------

    def start(self, features: int | None = None) -> None:
        """FEATURES_OK and DRIVER_OK with `features`, by default all that the device offers, and all virtqueues."""
        self.features = self.device.features if features is None else features
        assert self.device.accepts(self.features), f"the device does not accept {self.features:#x}"
        self.device.features_ok(self.features)
        queues = self.device.queues_for(self.features)
        self.device.activate(self.features, [index for index, queue in enumerate(queues) if queue])

    def reset(self) -> None:
        self._available.clear()
        self._in_flight.clear()
        self.device.reset()

    def send(self, queue: int, readable: bytes = b"", writable: Sequence[int] = ()) -> bytes:
        """One request to a handled queue; what the device wrote. What it raises passes through."""
        buffers = self.submit(queue, readable, writable)
        assert buffers.done, "the device holds the request"
        return buffers.written

    def submit(self, queue: int, readable: bytes = b"", writable: Sequence[int] = ()) -> Buffers:
        """One request to a handled queue, which the device may hold; `writable` are the sizes of the buffers."""
        described = self.device.queues_for(self.features)[queue]
        handler = self.device.handler(described) if described else None
        assert handler, f"queue {queue} has no handler"
        buffers = self._make(queue, readable, writable)
        self._in_flight[buffers.request.head] = buffers
        if handler(buffers.request) is not Hold.HELD:
            self.complete(buffers.request)
        return buffers

    def give(self, queue: int, writable: Sequence[int]) -> Buffers:
        """Makes buffers of these sizes, one request, available on a pulled queue, and kicks it."""
        buffers = self._make(queue, b"", writable)
        self._available.setdefault(queue, deque()).append(buffers)
        described = self.device.queues_for(self.features)[queue]
        if described and (ready := self.device.ready_handler(described)):
            ready(queue)
        return buffers

    def read_config(self, offset: int, size: int) -> bytes:
        self.device.config_refresh(offset, size)
        return bytes(self.device.config.memory[offset : offset + size])

    def run(self) -> None:
        """Runs what is due in the thread of the device: posted callbacks, and those of readable descriptors."""
        while self._posted:
            self._posted.popleft()()
        poll = select.poll()
        for fd in self._watched:
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(0):
            self._watched[fd]()

    def _make(self, queue: int, readable: bytes, writable: Sequence[int]) -> Buffers:
        memory = [bytearray([UNWRITTEN]) * size for size in writable]
        self._heads += 1
        return Buffers(Request(queue, self._heads, readable, [memoryview(part) for part in memory]), memory)

    # ---- BackendServices ----------------------------------------------------------------------------------------

    def pop(self, queue: int) -> Request | None:
        available = self._available.get(queue)
        if not available:
            return None
        buffers = available.popleft()
        self._in_flight[buffers.request.head] = buffers
        return buffers.request

    def complete(self, request: Request) -> None:
        if buffers := self._in_flight.pop(request.head, None):
            buffers.done = True

    def config_changed(self) -> None:
        self.config_changes += 1

    def needs_reset(self) -> None:
        self.resets_needed += 1

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        self._watched[fd] = callback

    def unwatch(self, fd: int) -> None:
        self._watched.pop(fd, None)

    def post(self, callback: Callable[[], None]) -> None:
        self._posted.append(callback)
