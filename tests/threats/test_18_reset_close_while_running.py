"""Threat 18: reset, close and unplug while requests run. The device stops first, then unmaps; nothing is left mapped,
nothing is touched afterwards, and doing it twice is no different from doing it once.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from cpp_ring import ChannelError
from emulator import local
from emulator.exit_codes import ExitCode
from emulator.store_paths import State
from guest import messages
from guest.device import ACKNOWLEDGE
from guest.errors import DriverError
from tests.emulator.drivers import EchoDriver
from tests.emulator.machines import MODELS, Machine

ECHO = f"{MODELS}:Echo"


def reset(device: EchoDriver, times: int) -> None:
    for _ in range(times):
        for status in (0, ACKNOWLEDGE, 0, 0):
            device.transport.exchange(messages.SET_DEVICE_STATUS, messages.word(status))


def test_resets_between_and_during_requests(machine: Machine) -> None:
    machine.run(ECHO)
    with EchoDriver(machine.domain(), 0) as device:
        for round_ in range(100):
            data = round_.to_bytes(4, "little") * 64
            chains = [device.submit(data) for _ in range(8)]
            device.queues[0].ring.kick()
            reset(device, 5)
            device.recover()  # probes, and repeats what has no completion
            for chain in chains:
                device.complete(device.queues[0], chain)
                assert bytes(chain.buffers[1].memory[: len(data)]) == data
                device.queues[0].free(chain)
    machine.until(lambda: machine.node("state") in ("2", "6"))


def test_100_000_status_toggles(machine: Machine) -> None:
    machine.run(ECHO, options=("--poll-us", "always"))
    with EchoDriver(machine.domain(), 0) as device:
        reset(device, 25_000)
        device.recover()
        assert device.echo(b"still here") == b"still here"


def test_reconnects_with_requests_in_flight(machine: Machine) -> None:
    process = machine.run(ECHO)
    for _ in range(20):
        device = EchoDriver(machine.domain(), 0)
        for _ in range(8):
            device.submit(b"never waited for")
        device.queues[0].ring.kick()
        device.transport.frontend.close()  # as if the guest had died
        device.close()
    with EchoDriver(machine.domain(), 0) as device:
        assert device.echo(b"after") == b"after"
    assert process.stop() == ExitCode.OK


def test_unplug_with_requests_in_flight_leaves_nothing_mapped(machine: Machine) -> None:
    process = machine.run()
    for _ in range(5):
        machine.attach(ECHO)
        device = EchoDriver(machine.domain(), 0)
        machine.command("detach", str(machine.domid), "0", "--no-wait")
        for _ in range(8):
            device.submit(b"x" * 100)
        device.queues[0].ring.kick()
        machine.await_state(State.CLOSING)
        assert "memfd:" in Path(f"/proc/{process.pid}/maps").read_text()
        with suppress(ChannelError, DriverError):
            reset(device, 3)
        device.close()
        machine.await_removal()
    assert "memfd:" not in Path(f"/proc/{process.pid}/maps").read_text()


def test_a_domain_that_dies_with_requests_in_flight(machine: Machine) -> None:
    process = machine.run(ECHO)
    device = EchoDriver(machine.domain(), 0)
    for _ in range(8):
        device.submit(b"x")
    device.queues[0].ring.kick()
    local.destroy_domain("t", machine.domid)
    assert process.wait() == ExitCode.OK
    with suppress(ChannelError, DriverError, OSError):
        device.close()
