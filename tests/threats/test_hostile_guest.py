"""A guest that writes anything, at any time, into its pages, its rings and its store nodes ends with its own device
broken and a named error; its second device and a second domain go on (issue rule; threats 1 to 9, 22, 25 together).
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cpp_ring import ChannelError, PeerDead, error_name
from cpp_ring.store import Store
from guest.device import VirtioDevice
from guest.drivers import open_device
from guest.hypervisor import Domain, open_local
from guest.rng import RngDevice

PATIENCE = 10.0
NEEDS_RESET = 64

Attack = Callable[[VirtioDevice, random.Random], None]


def awake(device: VirtioDevice) -> None:
    """Has the backend look at everything for a while: after a request it spins."""
    with contextlib.suppress(ChannelError):
        device.transport.frontend.exchange(7, timeout=0.2)


def scribble_on_the_config_page(device: VirtioDevice, chance: random.Random) -> None:
    page = device.transport.frontend.fe_page
    awake(device)
    for _ in range(20):
        at = chance.choice((0, 4, 8, 12, 0x40, 0x44, 0x48, 0x4A, 0x4E, chance.randrange(0x160)))
        page[at] = chance.randrange(256)


def lie_about_the_sequence(device: VirtioDevice, chance: random.Random) -> None:
    page = device.transport.frontend.fe_page
    awake(device)
    page[0x40:0x44] = chance.randrange(1 << 31, 1 << 32).to_bytes(4, "little")


def scribble_on_the_ring(device: VirtioDevice, chance: random.Random) -> None:
    ring = device.queues[0].ring
    awake(device)
    for _ in range(20):
        ring.memory[chance.randrange(16 * ring.size + 64)] = chance.randrange(256)


def run_the_index_ahead(device: VirtioDevice, _: random.Random) -> None:
    ring = device.queues[0].ring
    at = ring.driver_address - ring.descriptor_address + 2
    awake(device)
    ring.memory[at : at + 2] = (0x7FFF).to_bytes(2, "little")


def point_into_nowhere(device: VirtioDevice, _: random.Random) -> None:
    ring = device.queues[0].ring
    ring.add([], [((1 << 63) | (0x7FFFFFF << 12), 64)])
    ring.kick()


ATTACKS: list[Attack] = [
    scribble_on_the_config_page,
    lie_about_the_sequence,
    scribble_on_the_ring,
    run_the_index_ahead,
    point_into_nowhere,
]


def broken(device: VirtioDevice) -> bool:
    frontend = device.transport.frontend
    return not frontend.backend_alive or bool(frontend.device_status & NEEDS_RESET)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_hostile_driver_breaks_its_own_device_only(
    attack: Attack, emulator: Callable[..., object], domain: Domain, directory: Path
) -> None:
    emulator("rng", "rng", domid=1)
    emulator("rng", domid=2)
    chance = random.Random(attack.__name__)
    with (
        open_device(domain, 0) as victim,
        open_device(domain, 1) as neighbour,
        open_device(open_local(directory, 2), 0) as stranger,
    ):
        assert isinstance(neighbour, RngDevice)
        assert isinstance(stranger, RngDevice)
        deadline = time.monotonic() + PATIENCE
        while not broken(victim):
            assert time.monotonic() < deadline, "the device took all of it"
            attack(victim, chance)
            victim.transport.frontend.wait_event(0.01)
            for bystander in (neighbour, stranger):
                assert len(bystander.read(32)) == 32
        name = error_name(victim.transport.frontend.error_code)
        assert name not in ("ok", "unknown", "model", "host"), name
        for bystander in (neighbour, stranger):
            assert len(bystander.read(4096)) == 4096


def test_garbage_in_the_store_closes_that_device_only(
    emulator: Callable[..., object], domain: Domain, dom0: Store
) -> None:
    emulator("rng", "rng", domid=1)
    garbage = ["", "-1", "4294967296", "9" * 20, "1e3", "0x10", "ref", " 7 ", "7\0", "\xff" * 100, "3" * 2000]
    with open_device(domain, 1) as neighbour, domain.open_store() as store:
        assert isinstance(neighbour, RngDevice)
        base = "/local/domain/1/device/virtio-msg/0"
        backend = "/local/domain/0/backend/virtio-msg/1/0"
        for node in ("version", "fe-to-be-ref", "be-to-fe-ref", "event-channel", "queue-0/event-channel", "arena-ref"):
            for value in garbage:
                store.write(f"{base}/state", "1")
                await_node(dom0, f"{backend}/state", "2")
                good = {"version": "1", "fe-to-be-ref": "1", "be-to-fe-ref": "2", "event-channel": "1"}
                for name, text in {**good, node: value}.items():
                    store.write(f"{base}/{name}", text)
                store.write(f"{base}/state", "3")
                await_node(dom0, f"{backend}/state", "6")
                assert dom0.read(f"{backend}/error")
                store.rm(f"{base}/{node}")
            assert len(neighbour.read(32)) == 32


def await_node(store: Store, path: str, wanted: str) -> None:
    store.watch(path, "await")
    try:
        deadline = time.monotonic() + PATIENCE
        while (value := store.read_optional(path)) != wanted:
            assert time.monotonic() < deadline, f"{path} is {value!r}, not {wanted!r}"
            store.next_event(0.2)
    finally:
        store.unwatch(path, "await")


def test_a_broken_device_can_be_connected_anew(emulator: Callable[..., object], domain: Domain) -> None:
    emulator("rng", domid=1)
    with open_device(domain, 0) as device:
        assert isinstance(device, RngDevice)
        deadline = time.monotonic() + PATIENCE
        while not broken(device):
            assert time.monotonic() < deadline
            lie_about_the_sequence(device, random.Random(0))
        with pytest.raises(PeerDead, match="bad_seq"):
            device.transport.frontend.exchange(7)
        assert len(device.read(64)) == 64
