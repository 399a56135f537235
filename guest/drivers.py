"""Which driver a device gets."""

from __future__ import annotations

import time
from typing import Any, Final

from guest.blk import BlockDevice
from guest.device import VirtioDevice
from guest.hypervisor import Domain
from guest.net import NetDevice
from guest.rng import RngDevice
from guest.xenbus import XenbusDevice

DRIVERS: Final[dict[int, type[VirtioDevice]]] = {1: NetDevice, 2: BlockDevice, 4: RngDevice}
"""By virtio device id. Others get `VirtioDevice`, which drives what needs no feature of its own."""


def open_device(domain: Domain, number: int, *, timeout: float = 30.0, **options: Any) -> VirtioDevice:
    """Connects device `number` with the driver for its device id, once the backend says which that is.

    `options` are VirtioDevice's. Raises what VirtioDevice raises.
    """
    deadline = time.monotonic() + timeout
    with domain.open_store() as store:
        nodes = XenbusDevice(store, number)
        nodes.watch()
        while (device_id := nodes.device_id()) is None and nodes.wait(deadline):
            pass
    driver = DRIVERS.get(device_id or 0, VirtioDevice)
    return driver(domain, number, timeout=max(1.0, deadline - time.monotonic()), **options)
