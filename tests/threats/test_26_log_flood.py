"""Threat 26: a guest that provokes the same complaint again and again fills no disk with it."""

from __future__ import annotations

import logging

import pytest

from cpp_ring import ChannelError
from devices import Device, RequestError
from emulator.dispatch import Dispatch
from emulator.log import BURST, RateLimit
from emulator.store_paths import State
from tests.emulator.drivers import EchoDriver
from tests.emulator.machines import MODELS, Machine


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.addFilter(RateLimit(BURST, 3600))
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1


@pytest.mark.many
def test_a_million_bad_requests_are_five_lines() -> None:
    log = logging.getLogger("virtio-dm flood")
    log.propagate = False
    records = Records()
    log.addHandler(records)
    dispatch = Dispatch(Device(), log)
    error = RequestError("too short")
    for _ in range(1_000_000):
        dispatch.failed("process", error)
    assert records.count == BURST


def test_a_guest_that_breaks_its_device_again_and_again_is_logged_a_few_times(machine: Machine) -> None:
    process = machine.run(f"{MODELS}:Misbehaving,where=on_read,what=KeyError")
    device = EchoDriver(machine.domain(), 0, timeout=5.0)
    for _ in range(300):
        try:
            device.transport.exchange(5, (8).to_bytes(4, "little") + (4).to_bytes(4, "little"))
        except ChannelError:
            break
    device.close()
    failures = [line for line in process.lines if "the model failed" in line]
    assert 0 < len(failures) <= 4 * BURST


def test_garbage_in_the_store_is_logged_a_few_times(machine: Machine) -> None:
    process = machine.run(f"{MODELS}:Echo")
    with machine.frontend_store() as store:
        for number in range(200):
            store.write(f"{machine.frontend_path()}/state", f"garbage {number}")
            machine.await_state(State.CLOSED)
            store.write(f"{machine.frontend_path()}/state", "1")
            machine.await_state(State.INIT_WAIT)
    assert 0 < len([line for line in process.lines if "garbage" in line]) <= 4 * BURST
