"""A local machine for a module, and emulator processes on it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cpp_ring.store import Store, StoreError
from guest.hypervisor import Domain, open_local
from tests import forked
from tests.emulator.machines import Process
from tests.raw_backend import local_machine

PATIENCE = 20.0


class Emulator:
    """An emulator process of one domain."""

    def __init__(self, domid: int, specs: tuple[str, ...]) -> None:
        arguments = [part for spec in specs for part in ("--device", spec)]
        command = ["run", "--hypervisor", "local:m", "--domid", str(domid), "--log-level", "error"]
        self._domid = domid
        self._count = len(specs)
        self._process = Process(*command, *arguments)

    def await_devices(self, dom0: Store) -> None:
        """Returns when its devices are in the store, ready or not."""
        dom0.watch("/local/domain", "devices")
        for number in range(self._count):
            while dom0.read_optional(f"/local/domain/{self._domid}/device/virtio-msg/{number}/backend") is None:
                assert dom0.next_event(PATIENCE) is not None, f"no device {number}"
        dom0.unwatch("/local/domain", "devices")

    def freeze(self) -> None:
        self._process.signal(signal.SIGSTOP)

    def kill(self) -> None:
        """As by kill -9."""
        self._process.kill()

    def stop(self) -> None:
        """Asks it to end, and sees that it does. Idempotent. What it said is shown if the test fails."""
        self._process.stop()
        print("\n".join(self._process.lines))


StartEmulator = Callable[..., Emulator]


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    with local_machine() as path:
        yield path


@pytest.fixture
def domain(directory: Path) -> Domain:
    """Domain 1."""
    return open_local(directory, 1)


@pytest.fixture
def dom0(directory: Path) -> Iterator[Store]:
    with Store.open(directory / "dom0" / "xenstored") as store:
        yield store


@pytest.fixture
def emulator(dom0: Store) -> Iterator[StartEmulator]:
    """`emulator("rng", "blk,path=...", domid=1)` starts one, and returns when its devices are in the store, ready or
    not. All end with the test, and their devices go.
    """
    started: list[Emulator] = []

    def start(*specs: str, domid: int = 1) -> Emulator:
        process = Emulator(domid, specs)
        started.append(process)
        process.await_devices(dom0)
        return process

    yield start
    for process in started:
        process.stop()
    for domid in (1, 2):
        for path in (f"/local/domain/{domid}/device/virtio-msg", f"/local/domain/0/backend/virtio-msg/{domid}"):
            with contextlib.suppress(StoreError):
                dom0.rm(path)


@pytest.fixture
def toolstack() -> Callable[..., None]:
    """`toolstack("detach", "1", "0")` runs one command of the emulator's."""

    def run(command: str, *arguments: str) -> None:
        done = forked.run([command, *arguments, "--hypervisor", "local:m"], PATIENCE)
        assert done.returncode == 0, done.stderr

    return run
