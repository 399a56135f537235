"""Threat 30: a backend that lies in a used ring."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cpp_ring import ChannelError
from guest.errors import (
    RequestTimeout,
)
from guest.hypervisor import Domain
from guest.rng import RngDevice
from tests.raw_queue import RawQueue
from tests.scripted_device import ScriptedDevice
from tests.threats.lying_backend.server import Server


def use_twice(queue: RawQueue, head: int) -> None:
    queue.put_used(head, 16)
    queue.put_used(head, 16)
    queue.publish()


USED_RING_LIES: dict[str, Callable[[RawQueue, int], None]] = {
    "id not in flight": lambda queue, head: queue.use((head + 1) % queue.size, 16),
    "id past the table": lambda queue, head: queue.use(queue.size, 16),
    "id of 32 bits": lambda queue, head: queue.use(head | 1 << 16, 16),
    "more written than writable": lambda queue, head: queue.use(head, 17),
    "4 GiB written": lambda queue, head: queue.use(head, 0xFFFFFFFF),
    "used.idx ahead of what was offered": lambda queue, head: queue.publish(queue.size + 1),
    "used.idx behind": lambda queue, head: queue.publish(0xFFFF),
    "the same id twice": use_twice,
}


@pytest.mark.parametrize("lie", USED_RING_LIES)
def test_a_lie_in_the_used_ring_is_an_error(domain: Domain, directory: Path, lie: str) -> None:
    with Server(directory, ScriptedDevice(), USED_RING_LIES[lie]) as raw:
        raw.attach()
        device = RngDevice(domain, 0, timeout=5.0)
        with pytest.raises(ChannelError):
            device.read(16)
        device.close()


def test_a_device_that_lied_serves_again_after_a_reset(domain: Domain, directory: Path) -> None:
    lies = [USED_RING_LIES["id past the table"]]

    def use(queue: RawQueue, head: int) -> None:
        if lies:
            lies.pop()(queue, head)
            return
        (address, size, _) = queue.chain(head)[0]
        queue.payload(address, size)[:] = b"r" * size
        queue.use(head, size)

    with Server(directory, ScriptedDevice(), use) as raw:
        raw.attach()
        with RngDevice(domain, 0, timeout=5.0) as device:
            with pytest.raises(ChannelError):
                device.read(16)
            device.recover()
            assert device.read(16) == b"r" * 16


def test_a_request_the_device_keeps_times_out_and_is_not_repeated(domain: Domain, directory: Path) -> None:
    offered: list[int] = []

    with Server(directory, ScriptedDevice(), lambda queue, head: offered.append(head)) as raw:
        raw.attach()
        with RngDevice(domain, 0, timeout=5.0) as device:
            device.timeout = 0.3
            free = device.transport.arena.free_bytes if device.transport.arena else 0
            with pytest.raises(RequestTimeout):
                device.read(16)
            assert device.transport.arena is not None
            assert device.transport.arena.free_bytes < free  # the device may still write there
            device.timeout = 5.0
            device.recover()
            assert len(device.queues[0]) == 0
            assert device.transport.arena.free_bytes == free
    assert len(offered) == 1


def test_a_random_source_that_gives_nothing_ends_at_the_deadline(domain: Domain, directory: Path) -> None:
    with Server(directory, ScriptedDevice(), lambda queue, head: queue.use(head, 0)) as raw:
        raw.attach()
        with RngDevice(domain, 0, timeout=5.0) as device:
            device.timeout = 0.3
            with pytest.raises(RequestTimeout):
                device.read(16)
