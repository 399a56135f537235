"""Threat 20: a model that raises anything anywhere, sleeps, spins or returns rubbish breaks only itself: the process
lives, a second device goes on, and the guest is told.
"""

from __future__ import annotations

import signal
from contextlib import suppress

import pytest

from cpp_ring import ChannelError, ChannelTimeout, error_name
from emulator import toolstack
from emulator.exit_codes import ExitCode
from emulator.spec import parse
from emulator.store_paths import State
from guest.errors import DriverError
from guest.rng import RngDevice
from tests.emulator.drivers import EchoDriver
from tests.emulator.machines import MODELS, Machine, Process

NEEDS_RESET = 64
EXCEPTIONS = [
    "RuntimeError",
    "KeyboardInterrupt",
    "SystemExit",
    "MemoryError",
    "GeneratorExit",
    "StopIteration",
    "NoText",
]
SERVED = ["features_ok", "activate", "requestq", "on_read", "on_write", "reset"]


def misbehaving(where: str, what: str, more: str = "") -> str:
    return f"{MODELS}:Misbehaving,where={where},what={what}{more}"


def provoke(machine: Machine, devid: int) -> None:
    """A guest that does everything once, as far as it gets."""
    try:
        device = EchoDriver(machine.domain(), devid, timeout=2.0)
    except (DriverError, ChannelError):
        return
    for step in (
        lambda: device.config_read(8, 4),
        lambda: device.config_write(4, b"\1\0\0\0"),
        lambda: device.echo(b"request"),
        device.reset,
    ):
        with suppress(DriverError, ChannelError):
            step()
    device.close()


def broken_by_a_request(machine: Machine, devid: int) -> EchoDriver:
    """A guest whose device asked for a reset after its first request."""
    device = EchoDriver(machine.domain(), devid)
    device.submit(b"x")
    device.queues[0].ring.kick()
    frontend = device.transport.frontend
    while not frontend.device_status & NEEDS_RESET:
        assert frontend.wait_event(20)
    return device


def assert_alive(machine: Machine, process: Process, devid: int) -> None:
    """The rng device `devid` answers, and the process ends in order."""
    with RngDevice(machine.domain(), devid) as rng:
        assert len(rng.read(16)) == 16
    assert process.stop() == ExitCode.OK


@pytest.mark.parametrize("where", SERVED)
def test_an_exception_breaks_only_its_own_device(machine: Machine, where: str) -> None:
    kinds = [*EXCEPTIONS, "recurse"]
    process = machine.run(*(misbehaving(where, what) for what in kinds), "rng")
    for devid, what in enumerate(kinds):
        provoke(machine, devid)
        process.await_line(f"device {devid}: {'connected' if what == 'NoText' else 'the model failed'}")
    assert_alive(machine, process, len(kinds))


def test_a_failed_handler_needs_a_reset_and_says_model(machine: Machine) -> None:
    process = machine.run(*(misbehaving("requestq", what) for what in EXCEPTIONS), "rng")
    broken = [broken_by_a_request(machine, devid) for devid in range(len(EXCEPTIONS))]
    for devid, device in enumerate(broken):
        frontend = device.transport.frontend
        assert error_name(frontend.error_code) == "model"
        machine.until(lambda devid=devid: (machine.node("error", devid) or "").startswith("model "))  # type: ignore[misc]
        device.reset()
        assert frontend.device_status == 0
        device.close()
    assert_alive(machine, process, len(EXCEPTIONS))


@pytest.mark.parametrize("where", ["open", "close", "update"])
def test_an_exception_outside_of_service_breaks_only_its_own_device(machine: Machine, where: str) -> None:
    process = machine.run()
    for devid, what in enumerate(EXCEPTIONS):
        toolstack.attach(machine.store, 0, machine.domid, parse(misbehaving(where, what)))
        machine.await_state(State.CLOSED if where == "open" else State.INIT_WAIT, devid)
        if where == "update":
            machine.store.write(f"/local/domain/0/backend/virtio-msg/{machine.domid}/{devid}/update", "start=1")
            machine.until(lambda devid=devid: machine.node("update", devid) is None)  # type: ignore[misc]
        if where != "close":
            assert "the model failed" in (machine.node("error", devid) or "")
        if what != "StopIteration":  # one stays until the process ends
            machine.store.write(f"/local/domain/0/backend/virtio-msg/{machine.domid}/{devid}/online", "0")
            machine.await_removal(devid)
            toolstack.attach(machine.store, 0, machine.domid, parse("rng"), devid)
    assert_alive(machine, process, 0)


def test_rubbish_from_a_handler_breaks_only_its_own_device(machine: Machine) -> None:
    kinds = [
        "returns=7",
        "returns='text'",
        "returns=[]",
        "returns=request",
        "written=-2",
        "written=2**70",
        "written=2**31",
        "written='text'",
        "written=None",
        "written=1.5",
    ]
    process = machine.run(*(f"{MODELS}:Rubbish,{kind}" for kind in kinds), "rng")
    for devid in range(len(kinds)):
        broken_by_a_request(machine, devid).close()
    assert_alive(machine, process, len(kinds))


def test_a_model_that_sleeps_delays_only_itself_and_is_abandoned_at_the_end(machine: Machine) -> None:
    process = machine.run(misbehaving("on_read", "sleep", ",seconds=60"), "rng")
    device = EchoDriver(machine.domain(), 0, exchange_timeout=0.2)
    with pytest.raises(ChannelTimeout):
        device.config_read(8, 4)
    with RngDevice(machine.domain(), 1) as rng:
        assert len(rng.read(16)) == 16
    machine.attach("rng")  # the store is served as well
    process.signal(signal.SIGTERM)
    assert process.wait() == ExitCode.STUCK
    assert any("device 0: its model did not return" in line for line in process.lines)
    assert machine.node("state", 0) is None
    assert machine.node("state", 2) == str(int(State.INITIALISING))
    device.close()


def test_a_model_that_never_returns_delays_only_itself(machine: Machine) -> None:
    process = machine.run(misbehaving("requestq", "spin"), "rng")
    device = EchoDriver(machine.domain(), 0)
    device.submit(b"x")
    device.queues[0].ring.kick()
    with RngDevice(machine.domain(), 1) as rng:
        assert len(rng.read(16)) == 16
    process.signal(signal.SIGTERM)
    process.await_line("stopping")
    process.signal(signal.SIGTERM)
    assert process.wait() == ExitCode.FORCED
    device.close()
