"""A guest that writes anything, at any time, into its pages, its rings and its store nodes ends with its own device
broken and a named error; its second device and a second domain go on (issue rule; threats 1 to 9, 22, 25 together).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cpp_ring import PeerDead
from cpp_ring.store import Store
from guest.drivers import open_device
from guest.hypervisor import Domain, open_local
from guest.rng import RngDevice
from tests.hostile_driver import ATTACKS, Attack, attack_until_broken, broken, lie_about_the_sequence

PATIENCE = 10.0


@pytest.mark.parametrize("kind", ["rng", "blk", "net"])
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_hostile_driver_breaks_its_own_device_only(
    attack: Attack, kind: str, emulator: Callable[..., object], domain: Domain, directory: Path, tmp_path: Path
) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    specs = {
        "rng": "rng",
        "blk": f"blk,path={image}",
        "net": f"net,socket={tmp_path / 'ours'},peer={tmp_path / 'peer'}",
    }
    emulator(specs[kind], "rng", domid=1)
    emulator("rng", domid=2)
    with (
        open_device(domain, 0) as victim,
        open_device(domain, 1) as neighbour,
        open_device(open_local(directory, 2), 0) as stranger,
    ):
        assert isinstance(neighbour, RngDevice)
        assert isinstance(stranger, RngDevice)
        attack_until_broken(attack, victim, [neighbour, stranger])


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
