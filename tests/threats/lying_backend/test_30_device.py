"""Threat 30: a backend that lies while its device is probed, configured and reset."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from cpp_ring import PeerDead
from guest import messages
from guest.device import FAILED, FEATURES_OK, NEEDS_RESET
from guest.errors import (
    BadAnswer,
    ConfigRefused,
    InitialisationFailed,
    NeedsReset,
)
from guest.hypervisor import Domain
from guest.rng import RngDevice
from guest.xenbus import State
from tests.raw_backend import RawBackend
from tests.scripted_device import PROBED, ScriptedDevice

LIES_IN_PROBE = {
    "info short": (messages.GET_DEVICE_INFO, b"\0" * 23),
    "info long": (messages.GET_DEVICE_INFO, b"\0" * 25),
    "info of another type": (messages.GET_DEVICE_INFO, struct.pack("<5I2H", 63, 0, 64, 0, 1, 0, 0)),
    "info with odd feature bits": (messages.GET_DEVICE_INFO, struct.pack("<5I2H", 4, 0, 33, 0, 1, 0, 0)),
    "info without features": (messages.GET_DEVICE_INFO, struct.pack("<5I2H", 4, 0, 0, 0, 1, 0, 0)),
    "features empty": (messages.GET_DEVICE_FEATURES, b""),
    "features of other blocks": (messages.GET_DEVICE_FEATURES, struct.pack("<4I", 1, 2, 0, 1)),
    "fewer features": (messages.GET_DEVICE_FEATURES, struct.pack("<3I", 0, 1, 0)),
    "features without VERSION_1": (messages.GET_DEVICE_FEATURES, struct.pack("<4I", 0, 2, 0, 0)),
    "features taken with words": (messages.SET_DRIVER_FEATURES, b"\0" * 4),
    "status empty": (messages.GET_DEVICE_STATUS, b""),
    "FEATURES_OK does not stick": (messages.GET_DEVICE_STATUS, struct.pack("<I", PROBED & ~FEATURES_OK)),
    "DRIVER_OK does not stick": (messages.GET_DEVICE_STATUS, struct.pack("<I", 11)),
    "reset does not reset": (messages.SET_DEVICE_STATUS, struct.pack("<I", 1)),
    "set status empty": (messages.SET_DEVICE_STATUS, b""),
    "no such queue": (messages.GET_VQUEUE, struct.pack("<4I3Q", 0, 0, 0, 0, 0, 0, 0)),
    "another queue": (messages.GET_VQUEUE, struct.pack("<4I3Q", 1, 8, 0, 0, 0, 0, 0)),
    "queue not taken": (messages.GET_VQUEUE, struct.pack("<4I3Q", 0, 8, 0, 0, 0, 0, 0)),
    "queue short": (messages.GET_VQUEUE, b"\0" * 39),
    "set queue with words": (messages.SET_VQUEUE, b"\0"),
}


@pytest.mark.parametrize("lie", LIES_IN_PROBE)
def test_a_lie_during_probe_ends_the_probe_and_leaves_the_device(domain: Domain, backend: RawBackend, lie: str) -> None:
    msg_id, payload = LIES_IN_PROBE[lie]
    backend.device.lies[msg_id] = payload
    with pytest.raises((BadAnswer, InitialisationFailed)):
        RngDevice(domain, 0, timeout=5.0)
    assert backend.frontend_state() is State.CLOSED
    if messages.SET_DRIVER_FEATURES in backend.device.message_ids:
        assert backend.device.statuses[-1] & FAILED


def test_sizes_near_the_end_of_32_bits_cost_nothing(domain: Domain, backend: RawBackend) -> None:
    top = 0xFFFFFFFF
    backend.device.lies[messages.GET_DEVICE_INFO] = struct.pack("<5I2H", 4, top, top - 31, top, top, 0xFFFF, 0xFFFF)
    backend.device.lies[messages.GET_DEVICE_FEATURES] = lambda payload: payload + bytes(4) + b"\xff" * 252
    queue = backend.device.honest

    def largest(payload: bytes) -> bytes:
        answer = bytearray(queue(messages.GET_VQUEUE, payload))
        answer[4:8] = b"\xff" * 4
        return bytes(answer)

    backend.device.lies[messages.GET_VQUEUE] = largest
    with RngDevice(domain, 0, queue_size=16) as device:
        assert device.queues[0].ring.size == 16
        assert device.offered.bit_length() == 2048


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 1000, 32768, 65535])
def test_a_queue_of_any_maximum_gets_a_power_of_two(domain: Domain, directory: Path, size: int) -> None:
    with RawBackend(directory, ScriptedDevice(queue_sizes=(size,))) as raw:
        raw.attach()
        with RngDevice(domain, 0, queue_size=128) as device:
            assert device.queues[0].ring.size == 1 << (min(size, 128).bit_length() - 1)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0" * 11,
        struct.pack("<3I", 0, 0, 4),
        struct.pack("<3I", 0, 0, 0xFFFFFFFF) + b"\0" * 4,
        struct.pack("<3I", 0, 1, 4) + b"\0" * 4,
        struct.pack("<3I", 0, 0, 3) + b"\0" * 3,
        struct.pack("<3I", 0, 0, 4) + b"\0" * 5,
    ],
)
def test_config_data_of_another_range_or_size_is_refused(domain: Domain, backend: RawBackend, payload: bytes) -> None:
    with RngDevice(domain, 0) as device:
        backend.device.lies[messages.GET_CONFIG] = backend.device.lies[messages.SET_CONFIG] = payload
        with pytest.raises(BadAnswer):
            device.config_read(0, 4)
        with pytest.raises(BadAnswer):
            device.config_write(0, bytes(4))


def test_a_generation_that_never_settles_ends_at_the_deadline(domain: Domain, directory: Path) -> None:
    with RawBackend(directory, ScriptedDevice(config=bytes(600))) as raw:
        raw.attach()
        with RngDevice(domain, 0, timeout=3.0) as device:
            device.timeout = 0.2

            def restless(payload: bytes) -> bytes:
                raw.device.generation += 1
                return raw.device.honest(messages.GET_CONFIG, payload)

            assert len(device.config_read(0, 600)) == 600
            raw.device.lies[messages.GET_CONFIG] = restless
            with pytest.raises(BadAnswer, match="generation"):
                device.config_read(0, 600)


def test_a_refused_config_access_is_an_error(domain: Domain, backend: RawBackend) -> None:
    with RngDevice(domain, 0) as device:
        with pytest.raises(ConfigRefused):
            device.config_read(0, 65)
        with pytest.raises(ConfigRefused):
            device.config_read(0xFFFFFFFF, 1)


def test_a_device_that_always_needs_a_reset_is_given_up(domain: Domain, directory: Path) -> None:
    class Sick(RawBackend):
        def idle(self) -> None:
            if self.device.status & 4:
                self.set_status(NEEDS_RESET)

    with Sick(directory, ScriptedDevice()) as raw:
        raw.attach()
        device = RngDevice(domain, 0, timeout=5.0)
        with pytest.raises(NeedsReset):
            device.read(16)
        assert raw.device.statuses.count(0) <= 8
        device.close()


def test_a_backend_that_dies_in_every_probe_is_given_up(domain: Domain, directory: Path) -> None:
    class Mortal(RawBackend):
        mortal = False

        def idle(self) -> None:
            if self.mortal and messages.SET_DRIVER_FEATURES in self.device.message_ids:
                self.device.seen.clear()
                self.die()

    with Mortal(directory, ScriptedDevice()) as raw:
        raw.attach()
        device = RngDevice(domain, 0, timeout=5.0)
        raw.mortal = True
        raw.die()
        with pytest.raises(PeerDead):
            device.recover()
        assert raw.connections <= 8
        device.close()
