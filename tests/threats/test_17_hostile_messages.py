"""Threat 17, and 13 to 16 with it: a million hostile messages for each kind of device, models and all.

Messages go through the engine's own handler (`Backend.handle`), in blocks: a block sets the device up lawfully, as
far as chance takes it, and then says anything at all. Every message is answered well-formed or closes the channel by
a named error; the device works as ever afterwards.
"""

from __future__ import annotations

import logging
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cpp_ring import TRANSPORT_FEATURES, Backend, ChannelError, DriverQueue, LocalHypervisor
from devices.blk import Blk
from devices.device import Device
from devices.net import Net
from devices.rng import Rng
from emulator.dispatch import Dispatch, Services
from tests.raw_backend import local_machine

MESSAGES = 1_000_000
BLOCK = 512
HEADER = struct.Struct("<BBHHH")
ALLOWED = {"bad_size", "bad_type", "bad_token", "bad_msg_id", "bad_payload"}
PAYLOAD_SIZES = {2: 0, 3: 8, 4: 16, 5: 8, 6: 12, 7: 0, 8: 4, 9: 4, 10: 40, 11: 4, 12: 4}


def make_blk(path: Path) -> Device:
    disk = path / "disk"
    disk.write_bytes(bytes(1 << 20))
    return Blk(path=disk)


def make_net(path: Path) -> Device:
    return Net(socket=path / "ours", peer=path / "theirs")


def make_rng(_: Path) -> Device:
    return Rng()


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    with local_machine() as path:
        yield path


def message(msg_id: int, payload: bytes = b"", token: int = 0x0101) -> bytes:
    return HEADER.pack(0, msg_id, 0, token, 8 + len(payload)) + payload


def lawful_start(device: Device, rings: list[DriverQueue], chance: random.Random) -> list[bytes]:
    """What a driver says until DRIVER_OK; cut anywhere, or with a step left out."""
    features = device.features | TRANSPORT_FEATURES
    blocks = struct.pack("<II", features & 0xFFFFFFFF, features >> 32 & 0xFFFFFFFF)
    steps = [message(8, struct.pack("<I", status)) for status in (0, 1, 3)]
    steps.append(message(4, struct.pack("<II", 0, 2) + blocks))
    steps.append(message(8, struct.pack("<I", 11)))
    for ring in rings:
        areas = (ring.descriptor_address, ring.driver_address, ring.device_address)
        steps.append(message(10, struct.pack("<IIIIQQQ", ring.index, 0, ring.size, 0, *areas)))
    steps.append(message(8, struct.pack("<I", 15)))
    if chance.random() < 0.3:
        del steps[chance.randrange(len(steps)) :]
    elif chance.random() < 0.3:
        del steps[chance.randrange(len(steps))]
    return steps


def hostile(random_bytes: np.random.Generator, count: int, config_size: int) -> list[bytes]:
    """`count` messages: most have a true header, many small numbers, some are noise."""
    noise = random_bytes.integers(0, 256, (count, 320), dtype=np.uint8)
    small = random_bytes.random((count, 80)) < 0.7
    words = noise.view("<u4")
    words[small] &= np.uint32(0x1F)
    kinds = random_bytes.integers(0, 20, count)
    ids = random_bytes.integers(2, 13, count)
    result = []
    rows = (row.tobytes() for row in noise)
    for row, kind, msg_id in zip(rows, kinds.tolist(), ids.tolist(), strict=True):
        body = row[8:]
        if kind == 0:
            result.append(row[: 1 + (row[0] << 8 | row[1]) % 300])
        elif kind == 1:
            result.append(message(msg_id, body[: row[1] % 268]))
        elif kind == 2:
            offset = row[2] * 2 % (config_size + 8)
            size = row[3] % 65
            result.append(message(6, struct.pack("<III", 0, offset, size) + body[:size]))
        elif kind == 3:
            count_ = row[4] % 4
            result.append(message(4, struct.pack("<II", row[5] % 3, count_) + body[: 4 * count_]))
        else:
            result.append(message(msg_id, body[: PAYLOAD_SIZES[msg_id]], 1 + row[6]))
    return result


def refuse_or_answer(backend: Backend, request: bytes) -> None:
    try:
        answer = backend.handle(request)
    except ChannelError as error:
        closed_by = error.name
    else:
        closed_by = ""
    if closed_by:
        assert closed_by in ALLOWED, (closed_by, request.hex())
        return
    kind, msg_id, device, token, size = HEADER.unpack_from(answer)
    asked = HEADER.unpack_from(request)
    assert (kind, msg_id, device, token, size) == (1, asked[1], 0, asked[3], len(answer))


@pytest.mark.many
@pytest.mark.parametrize("make", [make_blk, make_net, make_rng], ids=["blk", "net", "rng"])
def test_a_million_hostile_messages_leave_the_device_as_it_was(
    make: object, directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert callable(make)
    device: Device = make(tmp_path)
    frontend, hypervisor = LocalHypervisor(str(directory), 1), LocalHypervisor(str(directory), 0)
    dispatch = Dispatch(device, logging.getLogger("hostile"))
    backend = Backend(
        hypervisor,
        1,
        dispatch,
        device_id=device.device_id,
        vendor_id=1,
        features=device.features | TRANSPORT_FEATURES,
        config=device.config.memory,
        hooked_reads=device.hooked_reads(),
        writable=device.writable_mask(),
        hooked_writes=device.hooked_writes(),
        queue_sizes=[queue.size for queue in device.queues],
        pulled=[device.handler(queue) is None for queue in device.queues],
    )
    dispatch.attach(Services(backend, lambda job: job()))
    device.open()
    features = device.features | TRANSPORT_FEATURES
    rings = [
        DriverQueue(frontend, 0, index=index, size=8, features=features)
        for index, queue in enumerate(device.queues)
        if queue.feature is None or features >> queue.feature & 1
    ]
    chance, noise = random.Random(1), np.random.default_rng(1)
    sent = activated = 0
    try:
        while sent < MESSAGES:
            start = lawful_start(device, rings, chance)
            for request in start:
                assert backend.handle(request)
            activated += backend.device_status & 4 != 0
            requests = hostile(noise, BLOCK, device.config.size)
            for request in requests:
                refuse_or_answer(backend, request)
            sent += len(start) + len(requests)
            if backend.device_status & 4:
                assert backend.device_status & 8, "DRIVER_OK without FEATURES_OK"
        assert activated > MESSAGES / BLOCK / 4, "the rings were hardly ever mapped"
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR], "a model failed"

        backend.handle(message(8, struct.pack("<I", 0)))
        assert (backend.device_status, backend.mapped_pages) == (0, 0)
        for request in lawful_start(device, rings, SimpleNamespace(random=lambda: 1.0)):  # type: ignore[arg-type]
            backend.handle(request)
        assert backend.device_status == 15, (backend.error_code, backend.error_detail)
    finally:
        backend.handle(message(8, struct.pack("<I", 0)))
        device.reset()
        device.close()
    assert len(list(Path("/proc/self/fd").iterdir())) < 200
