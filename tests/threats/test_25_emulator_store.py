"""Threat 25, the emulator's side: garbage in every node it reads, floods of watch events, a directory that comes and
goes. Only the device it concerns closes, with an error that says which node; the process and other devices go on.
"""

from __future__ import annotations

import random

import pytest

from cpp_ring.store import Store
from emulator.exit_codes import ExitCode
from emulator.store_paths import State
from guest.rng import RngDevice
from tests.emulator.drivers import EchoDriver
from tests.emulator.machines import MODELS, Machine, Process

ECHO = f"{MODELS}:Echo"
FRONTEND_NODES = ["version", "fe-to-be-ref", "be-to-fe-ref", "event-channel", "queue-0/event-channel", "arena-pages"]
GARBAGE = [b"", b"garbage", b"-1", b"4294967296", b"\xff\xfe\x00\x01", b"9" * 2000, b"1 2", b"0x10"]
GOOD = {"version": "1", "fe-to-be-ref": "1", "be-to-fe-ref": "2", "event-channel": "3"}


@pytest.fixture
def process(machine: Machine) -> Process:
    return machine.run(ECHO, "rng")


@pytest.fixture
def guest(machine: Machine, process: Process) -> Store:
    return machine.frontend_store()


def offer(machine: Machine, guest: Store, node: str, value: bytes) -> None:
    """Goes to Initialised with one node being garbage."""
    for name, text in {**GOOD, "arena-ref": "5", "arena-pages": "1", "queue-0/event-channel": "4"}.items():
        guest.write(f"{machine.frontend_path()}/{name}", text)
    guest.write(f"{machine.frontend_path()}/{node}", value)
    guest.write(f"{machine.frontend_path()}/state", str(int(State.INITIALISED)))


def start_over(machine: Machine, guest: Store) -> None:
    guest.write(f"{machine.frontend_path()}/state", str(int(State.INITIALISING)))
    # Both: the emulator may still be about to refuse what it read before.
    ready = str(int(State.INIT_WAIT))
    machine.until(lambda: machine.node("state") == ready and machine.node("error") is None)


def assert_alive(machine: Machine, process: Process) -> None:
    with RngDevice(machine.domain(), 1) as rng:
        assert len(rng.read(16)) == 16
    with EchoDriver(machine.domain(), 0) as device:
        assert device.echo(b"fine") == b"fine"
    assert process.stop() == ExitCode.OK


@pytest.mark.parametrize("node", FRONTEND_NODES)
def test_garbage_in_a_node_of_the_offer_closes_the_device_and_is_named(
    machine: Machine, process: Process, guest: Store, node: str
) -> None:
    for value in GARBAGE:
        offer(machine, guest, node, value)
        machine.await_state(State.CLOSED)
        error = machine.node("error") or ""
        assert error.startswith(f"store {node}: ")
        assert len(error) < 300
        start_over(machine, guest)
    for name in ("arena-ref", "arena-pages"):
        guest.rm(f"{machine.frontend_path()}/{name}")
    assert_alive(machine, process)


@pytest.mark.parametrize("connected", [False, True])
def test_a_garbage_state_closes_the_device(machine: Machine, process: Process, guest: Store, connected: bool) -> None:
    device = EchoDriver(machine.domain(), 0) if connected else None
    if connected:
        machine.await_state(State.CONNECTED)
    guest.write(f"{machine.frontend_path()}/state", b"\xff state")
    machine.await_state(State.CLOSED)
    assert (machine.node("error") or "").startswith("store state: ")
    if device is not None:
        assert not device.transport.frontend.backend_alive
        device.close()
    start_over(machine, guest)
    assert_alive(machine, process)


def test_every_state_in_any_order_ends_well(machine: Machine, process: Process, guest: Store) -> None:
    chance = random.Random(25)
    for _ in range(500):
        guest.write(f"{machine.frontend_path()}/state", str(chance.randrange(10)))
    start_over(machine, guest)
    assert_alive(machine, process)


def test_a_directory_that_vanishes_leaves_the_device_ready(machine: Machine, process: Process, guest: Store) -> None:
    device = EchoDriver(machine.domain(), 0)
    machine.await_state(State.CONNECTED)
    machine.remove(machine.frontend_path())
    machine.await_state(State.INIT_WAIT)
    assert not device.transport.frontend.backend_alive
    with RngDevice(machine.domain(), 1) as rng:
        assert len(rng.read(16)) == 16
    device.close()


def test_strange_names_among_the_devices_are_ignored(machine: Machine, process: Process, guest: Store) -> None:
    for name in ("x", "-1", "1e3", "65536", "99999999999", "00", "7"):
        guest.write(f"/local/domain/{machine.domid}/device/virtio-msg/{name}/state", "3")
    assert_alive(machine, process)


def test_a_flood_of_writes_costs_the_emulator_little(machine: Machine, process: Process, guest: Store) -> None:
    for number in range(5_000):
        guest.write(f"{machine.frontend_path()}/state", "1" if number % 2 else "2")
        guest.write(f"{machine.frontend_path()}/noise-{number % 50}", str(number))
    assert_alive(machine, process)


@pytest.mark.parametrize(
    "value", ["", "\x01", "nonsense", "blk", "blk,path=/nowhere", ",,,", "x=y", "rng,a=b", "a" * 3000]
)
def test_garbage_in_spec_closes_that_device_only(machine: Machine, process: Process, value: str) -> None:
    home = f"/local/domain/0/backend/virtio-msg/{machine.domid}/5"
    for name, text in {"spec": value, "state": "1", "online": "1", "frontend-id": str(machine.domid)}.items():
        machine.store.write(f"{home}/{name}", text)
    machine.await_state(State.CLOSED, 5)
    assert (machine.node("error", 5) or "").startswith("spec ")
    machine.store.write(f"{home}/online", "0")
    machine.await_removal(5)
    assert_alive(machine, process)


@pytest.mark.parametrize("value", ["nonsense", "=", ",", "start=", "start=x", "start=1,start=2", "\x7f=\x01"])
def test_garbage_in_update_is_refused_and_removed(machine: Machine, process: Process, value: str) -> None:
    machine.store.write(f"/local/domain/0/backend/virtio-msg/{machine.domid}/0/update", value)
    machine.until(lambda: machine.node("update") is None)
    assert (machine.node("error") or "").startswith("update ")
    assert_alive(machine, process)


@pytest.mark.parametrize("value", ["", "2", "no", "\x00"])
def test_online_means_removal_only_when_it_is_0(machine: Machine, process: Process, value: str) -> None:
    online = f"/local/domain/0/backend/virtio-msg/{machine.domid}/0/online"
    machine.store.write(online, value)
    machine.command("update", str(machine.domid), "0", "start=5")  # comes after it
    assert machine.node("state") == str(int(State.INIT_WAIT))
    machine.store.write(online, "1")
    assert_alive(machine, process)


def test_a_garbage_state_of_our_own_is_written_afresh(machine: Machine) -> None:
    machine.attach(ECHO)
    machine.store.write(f"/local/domain/0/backend/virtio-msg/{machine.domid}/0/state", "garbage")
    machine.run()
    machine.await_state(State.INIT_WAIT)
