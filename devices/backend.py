"""What the engine does for a device model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from devices.request import Request


class BackendServices(Protocol):
    """Given to each model as `self.backend` before `open`. All but `post` are for the thread of the device only."""

    def pop(self, queue: int) -> Request | None:
        """The next available request of a pulled queue; None if there is none, or the queue is not enabled."""

    def complete(self, request: Request) -> None:
        """Gives a popped or held request back, `request.written` being its `used.len`.

        What one callback of the model completes becomes visible to the driver together, when it returns. A request
        from before a reset of the device or its queue is dropped without a word: the driver has forgotten it.
        """

    def config_changed(self) -> None:
        """Tells the driver that the configuration space changed. Call it after the change."""

    def needs_reset(self) -> None:
        """Sets DEVICE_NEEDS_RESET: the model can go on only after a reset (virtio 1.3 section 2.1.1)."""

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Calls `callback` in the thread of the device whenever `fd` is readable, until `unwatch`."""

    def unwatch(self, fd: int) -> None:
        """Ends `watch`; a descriptor that is not watched is no error."""

    def post(self, callback: Callable[[], None]) -> None:
        """Calls `callback` soon in the thread of the device. From any thread."""
