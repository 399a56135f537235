"""What the tests on Xen share: a domU of each kind for all of them, emulators, and what is left behind."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest

from cpp_ring import xen
from cpp_ring.store import Store
from emulator.machine import Machine, open_machine, parse_hypervisor
from emulator.store_paths import State, backend_dir, backends_dir
from scripts.xen_rig.domu_config import Kind
from tests import forked
from tests.emulator.machines import Process
from tests.xen.domu import CPUS, Domu, GuestAgent

SECTOR: Final = 512
MIB: Final = 1 << 20
PATIENCE: Final = 120.0
"""Seconds, for what takes a few on a machine with nothing else to do. Others may have it, too."""

# dom0 and domU run at the same time, which some need and some are much faster with, or the domU has two CPUs.
TWO_CPUS: Final = pytest.mark.part("two-cpus")
EMULATOR_OPTIONS: Final = ("--poll-us", "50") if CPUS == 1 else ()
"""Where dom0 and the domUs share a CPU, waiting awake for a busy driver keeps it from running (docs/design/011)."""
MODELS: Final = Path(__file__).parent.parent / "emulator" / "models.py"


@pytest.fixture(scope="session", params=["pv", "pvh"])
def domu(request: pytest.FixtureRequest) -> Iterator[Domu]:
    """For tests that leave it as it was, but for the `last` ones."""
    kind: Kind = request.param
    with Domu(kind) as started:
        yield started


@pytest.fixture(scope="session")
def other() -> Iterator[Domu]:
    """A second one, for tests that want two."""
    with Domu("pvh") as started:
        yield started


@pytest.fixture(scope="session")
def driver() -> Iterator[Domu]:
    """A driver domain: it can serve others."""
    with Domu("pvh", emulator=True) as started:
        yield started


@pytest.fixture(scope="module")
def guest(domu: Domu) -> Iterator[GuestAgent]:
    """A driver in it without devices: each start is a second. Tests leave theirs."""
    with domu.agent() as started:
        yield started


@pytest.fixture(scope="session")
def dom0() -> Iterator[Store]:
    with xen.open_store() as store:
        yield store


@pytest.fixture(scope="session")
def machine() -> Machine:
    return open_machine(parse_hypervisor("xen"))


@pytest.fixture
def supervisor() -> Iterator[Process]:
    process = PatientProcess("supervise", "--hypervisor", "xen")
    process.await_line("watching the domains")
    yield process
    assert process.stop() == 0, process.lines


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(MIB))
    return path


class PatientProcess(Process):
    patience = PATIENCE


class Emulator(PatientProcess):
    """`virtio-dm run` of a domU with these devices, from when they are ready; in order stopped at the end."""

    def __init__(self, domu: Domu, *specs: str, options: tuple[str, ...] = EMULATOR_OPTIONS) -> None:
        devices = [part for spec in specs for part in ("--device", spec)]
        super().__init__("run", "--domid", str(domu.domid), *devices, *options)
        for devid in range(len(specs)):
            self.await_line(f"device {devid}: ready")

    def mappings(self) -> int:
        """Mapped regions of granted pages."""
        return Path(f"/proc/{self.pid}/maps").read_text().count("/dev/xen/gntdev")

    def descriptors(self) -> int:
        return len([*Path(f"/proc/{self.pid}/fd").iterdir()])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        code = self.stop()
        if kind is not None:
            print("\n".join(self.lines))
        else:
            assert code == 0, self.lines


def command(*arguments: str) -> str:
    """What `virtio-dm` prints in dom0. It must succeed and have nothing to complain of."""
    done = forked.run([*arguments, "--hypervisor", "xen"], PATIENCE)
    assert (done.returncode, done.stderr) == (0, ""), f"{arguments}: {done}"
    return done.stdout


def until(condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Looks until it is so."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def await_state(store: Store, domid: int, state: State, devid: int = 0, backend: int = 0) -> None:
    path = f"{backend_dir(backend, domid, devid)}/state"
    until(lambda: store.read_optional(path) == str(int(state)), f"{path} did not become {state.name}")


def nothing_left(store: Store, domid: int, backend: int = 0) -> bool:
    """Does the store know of no device of the domain?"""
    return store.read_optional(backends_dir(backend, domid)) is None


Bench = Callable[..., subprocess.CompletedProcess[str]]
"""`virtio-dm bench` with these arguments after the usual ones."""


@contextlib.contextmanager
def benched(domu: Domu) -> Iterator[Bench]:
    """The bench between dom0 and `domu`, which has the domU to itself."""

    def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
        relay = f"{sys.executable} -m tests.xen.relay {domu.domid}"
        command = ["bench", "--hypervisor", "xen", "--domid", str(domu.domid), "--guest", relay]
        return forked.run([*command, *arguments], 300, {"COLUMNS": "150"})

    domu.disconnect()
    try:
        yield bench
    finally:
        domu.connect()
