"""A store that refuses a change, once and at any point of a device's life, delays the device and no more."""

from __future__ import annotations

import errno
import socket
import threading

import pytest

from cpp_ring import LocalHypervisor, xs_wire
from cpp_ring.store import Store, StoreError
from emulator import toolstack, xenbus, xenbus_device
from emulator.loop import EventLoop
from emulator.poll import Polling
from emulator.spec import parse
from emulator.store_paths import State
from emulator.xenbus import Xenbus
from guest.rng import RngDevice
from tests.emulator.machines import PATIENCE, Machine

COMMIT = b"T\0"


class RefusingStore(Store):
    """Refuses the `refused`-th commit of a transaction; `commits` counts them."""

    commits = 0
    refused = 0

    def exchange(self, kind: int, payload: bytes, what: str, transaction: int = 0) -> bytes:
        if kind == xs_wire.XS_TRANSACTION_END and payload == COMMIT:
            self.commits += 1
            if self.commits == self.refused:
                super().exchange(kind, b"F\0", what, transaction)
                raise StoreError(errno.ENOSPC, f"xenstore {what}: told to refuse")
        return super().exchange(kind, payload, what, transaction)


def connection(machine: Machine) -> int:
    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    end.connect(str(machine.directory / "dom0" / "xenstored"))
    return end.detach()


class Served:
    """The devices of the machine's domain, in a thread of this process."""

    def __init__(self, machine: Machine, refused: int) -> None:
        self.store = RefusingStore(connection(machine))
        self.store.refused = refused
        self._loop = EventLoop()
        hypervisor = LocalHypervisor(str(machine.directory), 0)
        self._xenbus = Xenbus(
            self._loop, self.store, hypervisor, backend=0, frontend=machine.domid, polling=Polling.fixed(50.0),
            domain_gone=lambda: None, not_built=lambda devid, reason: None,
        )  # fmt: skip
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._xenbus.start()
        self._loop.run()

    def stop(self) -> None:
        self._loop.post(lambda: self._xenbus.drain(frozenset(), self._loop.stop))
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "it does not end"
        self._loop.close()
        self.store.close()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (xenbus, xenbus_device):
        monkeypatch.setattr(module, "RETRY_SECONDS", 0.02)


def one_life(machine: Machine, refused: int) -> int:
    """A device is attached, used, refused for nonsense, used again, unplugged. The number of commits it took."""
    devid = toolstack.attach(machine.store, 0, machine.domid, parse("rng"))
    served = Served(machine, refused)
    try:
        with RngDevice(machine.domain(), devid) as device:
            assert len(device.read(16)) == 16
        frontend = machine.frontend_path(devid)
        machine.store.write(f"{frontend}/state", str(int(State.INITIALISING)))
        machine.await_state(State.INIT_WAIT, devid)
        machine.store.write(f"{frontend}/version", "nonsense")
        machine.store.write(f"{frontend}/state", str(int(State.INITIALISED)))
        machine.await_state(State.CLOSED, devid)
        with RngDevice(machine.domain(), devid) as device:
            assert len(device.read(16)) == 16
            machine.store.write(f"/local/domain/0/backend/virtio-msg/{machine.domid}/{devid}/online", "0")
            machine.until(lambda: device.transport.lost())
        machine.await_removal(devid)
        return served.store.commits
    finally:
        served.stop()


def test_whichever_change_the_store_refuses_the_device_goes_its_way(machine: Machine) -> None:
    changes = one_life(machine, 0)
    assert changes > 8  # the nodes of each state, and the end
    for refused in range(1, changes + 1):
        machine.new_domain()
        one_life(machine, refused)
