"""The device the bench talks to: 256 plain bytes of configuration, one hooked field each way."""

from __future__ import annotations

from devices.config_space import ConfigSpace, array, le32, u8
from devices.device import Device, on_read, on_write
from devices.queue import Queue
from devices.request import Request

PLAIN_OFFSET = 0
SET_OFFSET = 256
COMPUTED_OFFSET = 260


class BenchConfig(ConfigSpace):
    """256 plain bytes, then a field that runs a hook when written and one that runs a hook when read."""

    plain = array(u8, 256, PLAIN_OFFSET)
    knob = le32(SET_OFFSET, writable=True)
    gauge = le32(COMPUTED_OFFSET)


class Bench(Device):
    """Not a virtio device type; serves `virtio-dm bench` only."""

    name = "bench"
    device_id = 63
    config_space = BenchConfig
    queues = (Queue("requestq", size=64),)

    def __init__(self) -> None:
        super().__init__()
        self.config.memory[PLAIN_OFFSET : PLAIN_OFFSET + 256] = bytes(range(256))
        self.writes = 0

    @on_write("knob")
    def knob_written(self, value: int) -> None:
        """The hook that `config.set.python` measures."""
        self.writes = value

    @on_read("gauge")
    def gauge_read(self) -> int:
        """The hook that `config.get.python` measures."""
        return self.writes

    def requestq(self, request: Request) -> None:
        """Answers with zeroes; there to have a queue."""
        request.write(bytes(request.writable_bytes))
