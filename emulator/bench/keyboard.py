"""The device whose stock driver asks the most of a config space: a keyboard (virtio 1.3 section 5.8)."""

from __future__ import annotations

from devices.config_space import ConfigSpace, array, u8
from devices.device import Device, on_write
from devices.queue import Queue
from devices.request import Hold, Request

CFG_ID_NAME = 0x01
NAME = b"virtio-dm bench"


class KeyboardConfig(ConfigSpace):
    """Section 5.8.4: what `select` and `subsel` ask for lies in the other fields."""

    select = u8(0, writable=True)
    subsel = u8(1, writable=True)
    size = u8(2)
    data = array(u8, 128, 8)


class Keyboard(Device):
    """Has a name and no keys; serves `virtio-dm bench` only."""

    name = "keyboard"
    device_id = 18
    config_space = KeyboardConfig
    config: KeyboardConfig
    queues = (Queue("eventq", size=64), Queue("statusq", size=64))

    @on_write("select")
    def selected(self, value: int) -> None:
        text = NAME if value == CFG_ID_NAME else b""
        self.config.size = len(text)
        self.config.data = text.ljust(128, b"\0")

    def eventq(self, request: Request) -> Hold:
        """Nobody presses a key."""
        return Hold.HELD

    def statusq(self, request: Request) -> None:
        """Lights of a keyboard that has none."""
