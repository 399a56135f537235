"""A backend made by hand that serves one virtqueue, as a test wants it to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.raw_backend import RawBackend
from tests.raw_queue import RawQueue
from tests.scripted_device import ScriptedDevice


class Server(RawBackend):
    """Gives every chain that is offered on `queue` to `use`."""

    queue = 0

    def __init__(self, directory: Path, device: ScriptedDevice, use: Callable[[RawQueue, int], None]) -> None:
        super().__init__(directory, device)
        self._use = use
        self._queue: RawQueue | None = None

    def idle(self) -> None:
        if not self.device.status & 4:
            return
        if self._queue is None or self._queue.geometry != self.device.queues[self.queue]:
            self._queue = RawQueue(self, self.queue)
        for head in self._queue.available():
            self._use(self._queue, head)
