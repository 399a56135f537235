"""Threat 22: events as fast as they can be raised cost their sender, not a neighbour, and not the process."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from emulator.exit_codes import ExitCode
from emulator.local import Control
from guest.rng import RngDevice
from tests.emulator.drivers import EchoDriver
from tests.emulator.machines import MODELS, Machine

ECHO = f"{MODELS}:Echo"


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_storm_on_one_device_leaves_the_neighbour_served_and_the_process_in_order(machine: Machine) -> None:
    process = machine.run(ECHO, "rng")
    device = EchoDriver(machine.domain(), 0)
    port = device.transport.frontend.event_channel
    calm = threading.Event()

    def storm() -> None:
        with Control(machine.directory) as control:
            while not calm.is_set():
                control.storm(machine.domid, port, 10_000)

    sender = threading.Thread(target=storm)
    sender.start()
    try:
        with RngDevice(machine.domain(), 1) as rng:
            for _ in range(200):
                assert len(rng.read(64)) == 64
        assert device.echo(b"through the storm") == b"through the storm"
        machine.attach("rng")
    finally:
        calm.set()
        sender.join()
    device.close()
    assert process.stop() == ExitCode.OK


def test_a_guest_that_only_raises_events_is_throttled(machine: Machine) -> None:
    process = machine.run(ECHO)
    device = EchoDriver(machine.domain(), 0)
    frontend = device.transport.frontend
    with Control(machine.directory) as control:
        control.storm(machine.domid, frontend.event_channel, 1)
        before, start = cpu_seconds(process.pid), time.monotonic()
        for _ in range(20):
            control.storm(machine.domid, frontend.event_channel, 10_000)
        spent, passed = cpu_seconds(process.pid) - before, time.monotonic() - start
    # Ports stay masked ever longer, so that what is spent grows far slower than what is sent.
    assert spent <= max(1.0, passed)
    assert device.echo(b"x") == b"x"
    device.close()
