"""Threat 30: a disk that says it did what it did not, and a card with impossible frames."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from guest.blk import FLUSH, BlockDevice, Operation
from guest.device import VirtioDevice
from guest.errors import (
    BadAnswer,
    DriverError,
    InitialisationFailed,
    RequestFailed,
    Unsupported,
)
from guest.hypervisor import Domain
from guest.net import MRG_RXBUF, NetDevice
from tests.raw_backend import RawBackend
from tests.raw_queue import RawQueue
from tests.scripted_device import ScriptedDevice
from tests.threats.lying_backend.server import Server


def blk_device(**limits: int) -> ScriptedDevice:
    config = bytearray(60)
    config[:8] = struct.pack("<Q", 64)
    return ScriptedDevice(2, features=1 << FLUSH, config=bytes(config))


def answering(status: int, short: int = 0) -> Callable[[RawQueue, int], None]:
    def use(queue: RawQueue, head: int) -> None:
        pieces = queue.chain(head)
        address, size, _ = pieces[-1]
        queue.payload(address, size)[0] = status
        writable = sum(size for _, size, write in pieces if write)
        queue.use(head, writable - short)

    return use


@pytest.mark.parametrize(
    ("status", "short", "expected"),
    [
        (1, 0, RequestFailed),
        (2, 0, Unsupported),
        (3, 0, BadAnswer),
        (0xFF, 0, BadAnswer),
        (0, 1, BadAnswer),
        (0, 513, BadAnswer),
    ],
)
def test_a_block_request_that_did_not_do_its_work_is_never_taken_for_success(
    domain: Domain, directory: Path, status: int, short: int, expected: type[DriverError]
) -> None:
    with Server(directory, blk_device(), answering(status, short)) as raw:
        raw.attach()
        with BlockDevice(domain, 0, timeout=5.0) as device:
            with pytest.raises(expected):
                device.read(0, 1)
            assert len(device.queues[0]) == 0
            assert device.transport.arena is not None
            assert device.transport.arena.free_bytes == device.transport.arena.pages * 4096


def test_a_capacity_of_64_bits_is_only_a_number(domain: Domain, directory: Path) -> None:
    device_model = blk_device()
    device_model.config[:8] = b"\xff" * 8
    with Server(directory, device_model, answering(1)) as raw:
        raw.attach()
        with BlockDevice(domain, 0, timeout=5.0) as device:
            assert device.capacity == 0xFFFFFFFFFFFFFFFF
            with pytest.raises(RequestFailed):
                device.read(device.capacity - 1, 1)
            assert device.submit(Operation.IN, 0, size=512) is not None


def test_limits_that_no_sector_fits_into_are_refused(domain: Domain, directory: Path) -> None:
    config = bytearray(60)
    config[8:16] = struct.pack("<II", 1, 4)
    with RawBackend(directory, ScriptedDevice(2, features=0b110, config=bytes(config))) as raw:
        raw.attach()
        with pytest.raises(InitialisationFailed, match="size_max"):
            BlockDevice(domain, 0, timeout=5.0)


def receiving(buffers: int, written: int) -> Callable[[RawQueue, int], None]:
    """Uses the first receive buffer, with this header and length."""

    def use(queue: RawQueue, head: int) -> None:
        if queue.used_idx == 0:
            address, size, _ = queue.chain(head)[0]
            queue.payload(address, size)[:12] = struct.pack("<BBHHHHH", 0, 0, 0, 0, 0, 0, buffers)
            queue.use(head, written)

    return use


@pytest.mark.parametrize("buffers", [0, 9, 65535])
def test_a_received_frame_of_impossibly_many_buffers_is_an_error(domain: Domain, directory: Path, buffers: int) -> None:
    model = ScriptedDevice(1, features=1 << MRG_RXBUF, config=bytes(24), queue_sizes=(8, 8))
    with Server(directory, model, receiving(buffers, 100)) as raw:
        raw.attach()
        with NetDevice(domain, 0, timeout=5.0) as device, pytest.raises(BadAnswer):
            device.receive(5.0)


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("written", [0, 11])
def test_a_received_buffer_too_short_for_its_header_is_dropped(
    domain: Domain, directory: Path, merge: bool, written: int
) -> None:
    model = ScriptedDevice(1, features=merge << MRG_RXBUF, config=bytes(24), queue_sizes=(8, 8))
    with Server(directory, model, receiving(1, written)) as raw:
        raw.attach()
        with NetDevice(domain, 0, timeout=5.0) as device:
            assert device.receive(0.3) is None
            assert device.dropped == 1


def test_a_generic_driver_survives_a_device_of_an_unknown_kind(domain: Domain, directory: Path) -> None:
    with RawBackend(directory, ScriptedDevice(0xFFFFFFFF, queue_sizes=(4, 4))) as raw:
        raw.attach()
        with VirtioDevice(domain, 0, timeout=5.0) as device:
            assert [queue.ring.size for queue in device.queues] == [4, 4]
