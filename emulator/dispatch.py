"""From the engine to a device model: the engine's `Model` protocol over a `devices.Device`.

Everything here runs in the device's thread. What a model raises is not caught on the way: the engine hands it to
`failed`, marks the device as needing a reset, and goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from devices.device import Device, Handler
from devices.errors import RequestError
from devices.request import Hold, Request

if TYPE_CHECKING:
    from cpp_ring import Backend
    from cpp_ring._core import Batch

REQUEST_ERROR = 43
MODEL_ERROR = 64
HELD = -1


class Dispatch:
    """The engine's view of `device`. `log` carries the device's name."""

    def __init__(self, device: Device, log: logging.Logger) -> None:
        self._device = device
        self._log = log
        self._handlers: list[Handler | None] = []
        self._ready: list[Callable[[int], None] | None] = []
        self._services: Services | None = None
        # The engine asks for these once: nothing stands between it and the model's configuration space.
        self.config_refresh = device.config_refresh
        self.config_write = device.config_write

    def attach(self, services: Services) -> None:
        """Says what serves the model. Before anything is dispatched."""
        self._services = services
        self._device.backend = services

    def detach(self) -> None:
        """Lets go of the engine, which holds us: no garbage collector sees through it."""
        if self._services is not None:
            self._services.detach()

    def accepts(self, features: int) -> bool:
        if not self._device.accepts(features):
            return False
        self._device.features_ok(features)
        return True

    def activate(self, features: int, queues: list[int]) -> None:
        device = self._device
        known = [*device.queues_for(features)]
        known += [None] * (len(device.queues) - len(known))
        self._handlers = [device.handler(queue) if queue else None for queue in known]
        self._ready = [device.ready_handler(queue) if queue else None for queue in known]
        for index in queues:
            if known[index] is None:
                raise _no_queue(index)
        device.activate(features, queues)

    def reset(self) -> None:
        self._device.reset()

    def queue_reset(self, queue: int) -> None:
        self._device.queue_reset(queue)

    def process(self, queue: int, batch: Batch) -> Sequence[int]:
        handler = self._handlers[queue]
        if handler is None:
            raise _no_queue(queue)
        written = []
        for head, readable, writable in batch:
            request = Request(queue, head, readable, writable)
            outcome = handler(request)
            if outcome is None:
                written.append(request.written)
            elif outcome is Hold.HELD:
                written.append(HELD)
            else:
                raise TypeError(f"handler of virtqueue {queue} returned {type(outcome).__name__}, not None or a hold")
        return written

    def kicked(self, queue: int) -> None:
        if handler := self._handlers[queue]:
            self._serve_pulled(queue, handler)
        elif ready := self._ready[queue]:
            ready(queue)

    def _serve_pulled(self, queue: int, handler: Handler) -> None:
        """A queue that is pulled by its place in the table but handled under the negotiated features."""
        services = self._services
        assert services is not None
        for _ in range(self._device.queues[queue].size):
            request = services.pop(queue)
            if request is None:
                return
            if handler(request) is None:
                services.complete(request)
        services.post(lambda: self.kicked(queue))  # a driver that never stops must not keep us from stopping

    def failed(self, where: str, error: BaseException) -> int:
        """Logs what the model raised in `where`; returns the error code for it. Raises nothing."""
        try:
            if isinstance(error, RequestError):
                self._log.warning("the driver made a request that no driver would make: %s", error)
                return REQUEST_ERROR
            self._log.error("the model failed in %s: %s", where, type(error).__name__, exc_info=error)
        except BaseException:  # the text of the error, or memory for it, may fail as well
            return MODEL_ERROR
        return MODEL_ERROR


def _no_queue(index: int) -> RequestError:
    return RequestError(f"virtqueue {index} is in use, but the negotiated features have none of that index")


class _Ended:
    """In place of the engine of a device that has ended, for threads that its model left behind."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"{name}: the device has ended")


class Services:
    """`devices.BackendServices` on the engine: what a model may ask for."""

    def __init__(self, engine: Backend, post: Callable[[Callable[[], None]], None]) -> None:
        self._engine: Backend | _Ended = engine
        self.post = post

    def detach(self) -> None:
        """The device has ended: nothing here works any more but `post`, which does nothing."""
        self._engine = _Ended()

    def pop(self, queue: int) -> Request | None:
        entry = self._engine.pop(queue)
        return None if entry is None else Request(queue, *entry)

    def complete(self, request: Request) -> None:
        self._engine.complete(request.queue, request.head, request.written)

    def config_changed(self) -> None:
        self._engine.config_changed()

    def needs_reset(self) -> None:
        self._engine.needs_reset(MODEL_ERROR)

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        self._engine.watch(fd, callback)

    def unwatch(self, fd: int) -> None:
        self._engine.unwatch(fd)
