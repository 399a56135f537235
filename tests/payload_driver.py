"""A driver whose requests lie outside the arena, on pages granted for them alone: `payload_driver.py DEVID BYTES`.

A program of its own, in a domU: reads the first BYTES of a disk, writes what it read behind them, prints the SHA-256 of
what it read. Every piece begins in the middle of a page and crosses into the next.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from typing import Final

from cpp_ring import DriverQueue, SharedPages
from guest.blk import BlockDevice
from guest.drivers import open_device
from guest.hypervisor import open_domain

PAGE: Final = 4096
T_IN: Final = 0
T_OUT: Final = 1
UNTOUCHED: Final = 0xEE
ODD: Final = PAGE - 7


def request(queue: DriverQueue, pages: SharedPages, kind: int, sector: int, size: int) -> None:
    """Its header crosses the first two pages, its data the rest; behind them the status."""
    memory = pages.memory
    memory[ODD : ODD + 16] = struct.pack("<IIQ", kind, 0, sector)
    data, status = (pages.address(2 * PAGE + ODD), size), (pages.address(2 * PAGE + ODD + size), 1)
    header = (pages.address(ODD), 16)
    if kind == T_OUT:
        queue.add([header, data], [status])
    else:
        queue.add([header], [data, status])
    queue.kick()
    assert queue.wait(30)
    used = queue.pop()
    assert used is not None
    assert used[1] == (1 if kind == T_OUT else size + 1), used
    assert memory[2 * PAGE + ODD + size] == 0, "the device says that it failed"


def main(devid: str, size_text: str) -> None:
    size = int(size_text)
    domain = open_domain("xen", None)
    with open_device(domain, int(devid)) as disk:
        assert isinstance(disk, BlockDevice)
        queue = disk.queues[0].ring
        pages = domain.hypervisor.share(disk.transport.xenbus.backend_domid, 4 + size // PAGE)
        pages.memory[:] = bytes([UNTOUCHED]) * len(pages.memory)
        request(queue, pages, T_IN, 0, size)
        start = 2 * PAGE + ODD
        around = bytes(pages.memory[start - 50 : start]) + bytes(pages.memory[start + size + 1 :])
        assert set(around) == {UNTOUCHED}, "bytes outside of the buffers were written"
        read = bytes(pages.memory[start : start + size])
        request(queue, pages, T_OUT, size // 512, size)
        disk.flush()
        print(hashlib.sha256(read).hexdigest(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
