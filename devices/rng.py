"""virtio-rng: entropy for the guest (virtio 1.3 section 5.4)."""

from __future__ import annotations

import os

from devices.device import Device
from devices.queue import Queue
from devices.request import Request

# What one request gets at most; a driver asks again for more (section 5.4.6.1 allows any length from 1 byte on).
MAX_BYTES = 65536


class Rng(Device):
    """Entropy device (virtio 1.3 section 5.4): fills the driver's buffers from the host kernel's random source."""

    name = "rng"
    device_id = 4
    queues = (Queue("requestq", size=256),)

    def requestq(self, request: Request) -> None:
        request.write(os.urandom(min(request.writable_bytes, MAX_BYTES)))
