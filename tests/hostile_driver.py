"""Drivers that write anything, at any time, into their pages and rings.

Of tests in this process, and, as a program of its own (`python3 hostile_driver.py ATTACK DEVID BYSTANDER`), of a domU:
it attacks device DEVID until that is broken, its device BYSTANDER being used all the while, and prints why it broke.
"""

from __future__ import annotations

import contextlib
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final

from cpp_ring import ChannelError, error_name
from guest.device import VirtioDevice
from guest.drivers import open_device
from guest.hypervisor import open_domain
from guest.queue import RequestQueue
from guest.rng import RngDevice

PATIENCE: Final = 60.0
NEEDS_RESET: Final = 64
NET: Final = 1
"""The virtio device id."""

Attack = Callable[[VirtioDevice, random.Random], None]


def attacked(device: VirtioDevice) -> RequestQueue:
    """A queue that the device serves as soon as there is something: of a network card the one that transmits."""
    return device.queues[1 if device.info.device_id == NET else 0]


def awake(device: VirtioDevice) -> None:
    """Has the backend look at everything for a while: after a request it spins."""
    with contextlib.suppress(ChannelError):
        device.transport.frontend.exchange(7, timeout=0.2)


def scribble_on_the_config_page(device: VirtioDevice, chance: random.Random) -> None:
    page = device.transport.frontend.fe_page
    awake(device)
    for _ in range(20):
        at = chance.choice((0, 4, 8, 12, 0x40, 0x44, 0x48, 0x4A, 0x4E, chance.randrange(0x160)))
        page[at] = chance.randrange(1, 256)  # a live byte of 0 would be a death, and no lie


def lie_about_the_sequence(device: VirtioDevice, chance: random.Random) -> None:
    page = device.transport.frontend.fe_page
    awake(device)
    page[0x40:0x44] = chance.randrange(1 << 31, 1 << 32).to_bytes(4, "little")


def scribble_on_the_ring(device: VirtioDevice, chance: random.Random) -> None:
    ring = attacked(device).ring
    awake(device)
    for _ in range(20):
        ring.memory[chance.randrange(16 * ring.size + 64)] = chance.randrange(256)


def run_the_index_ahead(device: VirtioDevice, _: random.Random) -> None:
    ring = attacked(device).ring
    at = ring.driver_address - ring.descriptor_address + 2
    awake(device)
    ring.memory[at : at + 2] = (0x7FFF).to_bytes(2, "little")


def point_into_nowhere(device: VirtioDevice, _: random.Random) -> None:
    ring = attacked(device).ring
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


def attack_until_broken(attack: Attack, victim: VirtioDevice, bystanders: Sequence[RngDevice]) -> str:
    """The name of the error that broke it. Raises AssertionError."""
    chance = random.Random(attack.__name__)
    deadline = time.monotonic() + PATIENCE
    while not broken(victim):
        assert time.monotonic() < deadline, "the device took all of it"
        attack(victim, chance)
        victim.transport.frontend.wait_event(0.01)
        for bystander in bystanders:
            assert len(bystander.read(32)) == 32
    for bystander in bystanders:
        assert len(bystander.read(4096)) == 4096
    name = error_name(victim.transport.frontend.error_code)
    assert name not in ("ok", "unknown", "model", "host"), name
    return name


def main(attack: str, devid: str, bystander: str) -> None:
    domain = open_domain("xen", None)
    with open_device(domain, int(devid)) as victim, open_device(domain, int(bystander)) as other:
        assert isinstance(other, RngDevice)
        print(attack_until_broken({known.__name__: known for known in ATTACKS}[attack], victim, [other]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
