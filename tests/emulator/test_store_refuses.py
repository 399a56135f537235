"""A store that refuses a change, once and at any point of a device's life, delays the device and no more."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from cpp_ring import xs_wire
from cpp_ring.store import Store, StoreError
from emulator import toolstack, xenbus, xenbus_device
from emulator.spec import parse
from emulator.store_paths import State, backend_dir
from guest.blk import BlockDevice
from tests.emulator.machines import Machine
from tests.emulator.served import Served, connection

COMMIT = b"T\0"


class RefusingStore(Store):
    """Refuses the `refused`-th commit of a transaction; `commits` counts them."""

    commits = 0
    refused = 0
    without_errors = False
    """Whether no error node can be written, ever: a quota is used up."""

    def exchange(self, kind: int, payload: bytes, what: str, transaction: int = 0) -> bytes:
        if kind == xs_wire.XS_TRANSACTION_END and payload == COMMIT:
            self.commits += 1
            if self.commits == self.refused:
                super().exchange(kind, b"F\0", what, transaction)
                raise StoreError(errno.ENOSPC, f"xenstore {what}: told to refuse")
        if self.without_errors and kind == xs_wire.XS_WRITE and payload.split(b"\0")[0].endswith(b"/error"):
            raise StoreError(errno.ENOSPC, f"xenstore {what}: told to refuse")
        return super().exchange(kind, payload, what, transaction)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (xenbus, xenbus_device):
        monkeypatch.setattr(module, "RETRY_SECONDS", 0.02)


class Life:
    """Of a disk from its attachment on, whose file `image` may be missing at first. `commits`: that it took."""

    def __init__(self, machine: Machine, image: Path, refused: int) -> None:
        self._machine = machine
        self._image = image
        self._devid = toolstack.attach(machine.store, 0, machine.domid, parse(f"blk,path={image}"))
        self._directory = backend_dir(0, machine.domid, self._devid)
        store = RefusingStore(connection(machine))
        store.refused = refused
        served = Served(machine, store)
        try:
            self._pass()
            self.commits = store.commits
        finally:
            served.stop()

    def _pass(self) -> None:
        """It cannot be made, is made, used, updated, refused for nonsense, used until its channel breaks, unplugged."""
        machine, devid = self._machine, self._devid
        self._fails(f"spec image {self._image}: no such file or directory")
        self._image.write_bytes(bytes(8192))
        self._update("")
        self._use()
        frontend = machine.frontend_path(devid)
        machine.store.write(f"{frontend}/state", str(int(State.INITIALISING)))
        machine.await_state(State.INIT_WAIT, devid)
        self._update("nonsense=1")
        assert (machine.node("error", devid) or "").startswith("update blk: no option 'nonsense'")
        self._update("size=16k")
        assert machine.node("error", devid) is None
        machine.store.write(f"{frontend}/version", "nonsense")
        machine.store.write(f"{frontend}/state", str(int(State.INITIALISED)))
        self._fails("store version")
        with BlockDevice(machine.domain(), devid) as device:
            assert device.capacity == 32
            device.transport.frontend.fe_page[0x40:0x44] = b"\xff\xff\xff\x77"
            self._fails("bad_seq ")
        with BlockDevice(machine.domain(), devid) as device:
            machine.store.write(f"{self._directory}/online", "0")
            machine.until(lambda: device.transport.lost())
        machine.await_removal(devid)

    def _use(self) -> None:
        with BlockDevice(self._machine.domain(), self._devid) as device:
            assert device.read(0, 1) == bytes(512)

    def _fails(self, error: str) -> None:
        self._machine.await_state(State.CLOSED, self._devid)
        assert (self._machine.node("error", self._devid) or "").startswith(error)

    def _update(self, text: str) -> None:
        self._machine.store.write(f"{self._directory}/update", text)
        self._machine.until(lambda: self._machine.node("update", self._devid) is None)


def test_whichever_change_the_store_refuses_the_device_goes_its_way(machine: Machine, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    changes = Life(machine, image, 0).commits
    assert changes > 16  # the nodes of each state, two updates, and the end
    for refused in range(1, changes + 1):
        machine.new_domain()
        image.unlink()
        print(f"{refused} of {changes}")  # shown when it fails
        Life(machine, image, refused)


def test_an_error_that_can_never_be_written_keeps_no_device_from_its_way(machine: Machine) -> None:
    devid = toolstack.attach(machine.store, 0, machine.domid, parse("rng"))
    store = RefusingStore(connection(machine))
    store.without_errors = True
    served = Served(machine, store)
    try:
        frontend = machine.frontend_path(devid)
        machine.await_state(State.INIT_WAIT, devid)
        machine.store.write(f"{frontend}/version", "nonsense")
        machine.store.write(f"{frontend}/state", str(int(State.INITIALISED)))
        machine.await_state(State.CLOSED, devid)
        assert machine.node("error", devid) is None
        machine.store.write(f"{backend_dir(0, machine.domid, devid)}/online", "0")
        machine.await_removal(devid)
    finally:
        served.stop()
