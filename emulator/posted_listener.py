"""What a device's thread says, carried to the main thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from emulator.backend_nodes import Built
from emulator.loop import EventLoop

if TYPE_CHECKING:
    from emulator.xenbus_device import XenbusDevice


class PostedListener:
    """A `DeviceThread`'s listener that calls the device's in the main thread."""

    def __init__(self, loop: EventLoop, device: XenbusDevice) -> None:
        self._loop = loop
        self._device = device

    def _post(self, callback: Callable[[], None]) -> None:
        self._loop.post(lambda: self._device.handle(callback))

    def built(self, built: Built) -> None:
        self._post(lambda: self._device.built(built))

    def not_built(self, reason: str) -> None:
        self._post(lambda: self._device.not_built(reason))

    def connected(self) -> None:
        self._post(self._device.connected)

    def not_connected(self, reason: str) -> None:
        self._post(lambda: self._device.not_connected(reason))

    def disconnected(self, reason: str, error: str) -> None:
        self._post(lambda: self._device.disconnected(reason, error))

    def updated(self, error: str | None, spec: str | None) -> None:
        self._post(lambda: self._device.updated(error, spec))

    def finished(self) -> None:
        self._post(self._device.finished)
