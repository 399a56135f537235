"""Xen's own paravirtual disks and network cards for a domU, by the store's nodes alone: what one has without virtio.

The nodes are those that libxl writes (xen/include/public/io/blkif.h and netif.h); no hotplug script runs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from cpp_ring.store import Store, StoreError, Transaction
from emulator.child import die_with_parent
from emulator.exit_codes import ExitCode, Failure
from emulator.store_paths import State

PATIENCE: Final = 20.0
XVDA, MINORS = 51712, 16
QEMUS: Final = ("/usr/libexec/xen-qemu-system-i386", "qemu-system-i386")
"""Debian's for Xen (package qemu-system-xen), or one that is in PATH."""


def command(*words: str) -> str:
    """Output. Raises Failure with what it said."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except OSError as error:
        raise Failure(ExitCode.NOT_INSTALLED, f"{words[0]}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise Failure(ExitCode.TIMED_OUT, str(error)) from error
    if done.returncode:
        said = "; ".join(done.stderr.split("\n")[:3]).strip("; ")
        raise Failure(ExitCode.REFUSED, f"{' '.join(words)}: {said or done.returncode}")
    return done.stdout.strip()


class XenDevice:
    """One device's two directories in the store, from their making to `remove`."""

    def __init__(self, store: Store, backend_kind: str, kind: str, domid: int, number: int) -> None:
        self._store = store
        self.back = f"/local/domain/0/backend/{backend_kind}/{domid}/{number}"
        self.front = f"/local/domain/{domid}/device/{kind}/{number}"
        self._domid = domid

    def write(self, back: Mapping[str, str], front: Mapping[str, str]) -> None:
        """Raises Failure: there is such a device already."""
        common_back = {"frontend": self.front, "frontend-id": str(self._domid), "online": "1", "state": "1"}
        common_front = {"backend": self.back, "backend-id": "0", "state": "1"}

        def change(nodes: Transaction) -> None:
            for directory in (self.back, self.front):
                if nodes.read_optional(directory) is not None:
                    raise Failure(ExitCode.REFUSED, f"{directory} is there already: detach it, or take another domain")
            for directory, owner, reader, content in (
                (self.back, 0, self._domid, {**back, **common_back}),
                (self.front, self._domid, 0, {**front, **common_front}),
            ):
                nodes.write(directory, "")
                nodes.set_perms(directory, [f"n{owner}", f"r{reader}"])
                for name, value in content.items():
                    nodes.write(f"{directory}/{name}", value)

        self._store.transact(change)

    def await_state(self, *states: State, alive: Callable[[], bool] = lambda: True) -> bool:
        """Until the backend is in one of them; False: it is no longer `alive`. Raises TimeoutError."""
        deadline = time.monotonic() + PATIENCE
        wanted = [str(int(state)) for state in states]
        while self._store.read_optional(f"{self.back}/state") not in wanted:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.back} did not become {states[0].name} in {PATIENCE:g} s")
            if not alive():
                return False
            time.sleep(0.01)
        return True

    def remove(self, alive: Callable[[], bool] = lambda: True) -> None:
        """As libxl unplugs it; by force after a while, or if the backend is not `alive`. Raises nothing."""
        with contextlib.suppress(TimeoutError, StoreError):
            self._store.write(f"{self.back}/online", "0")
            self._store.write(f"{self.back}/state", str(int(State.CLOSING)))
            self.await_state(State.CLOSED, alive=alive)
        with contextlib.suppress(StoreError):  # the domain is gone, and its nodes with it
            self._store.rm(self.back)
            self._store.rm(self.front)


@contextlib.contextmanager
def blkback(store: Store, domid: int, number: int, disk: Path) -> Iterator[None]:
    """The kernel's backend on a file, through a loop device. `number`: of xvda, and 16 for each that follows."""
    loop = command("losetup", "--find", "--show", str(disk))
    try:
        number_of = Path(loop).stat().st_rdev
        device = XenDevice(store, "vbd", "vbd", domid, number)
        place = f"{os.major(number_of):x}:{os.minor(number_of):x}"
        device.write(disk_back(number, "phy", loop) | {"physical-device": place}, disk_front(number))
        try:
            device.await_state(State.CONNECTED)
            yield
        finally:
            device.remove()
    finally:
        command("losetup", "--detach", loop)


@contextlib.contextmanager
def qdisk(store: Store, domid: int, number: int, disk: Path) -> Iterator[bool]:
    """QEMU's backend on the same file, in dom0's user space. Whether there is one that can serve it."""
    program = next(filter(None, map(shutil.which, QEMUS)), None)
    if program is None or not opens_direct(disk):
        yield False
        return
    device = XenDevice(store, "qdisk", "vbd", domid, number)
    device.write(disk_back(number, "qdisk", f"aio:{disk}"), disk_front(number))
    with qemu(program, domid) as process:

        def alive() -> bool:
            return process.poll() is None

        try:
            # One that was built without Xen ends at once.
            yield device.await_state(State.CONNECTED, alive=alive)
        finally:
            device.remove(alive)


def opens_direct(path: Path) -> bool:
    """As QEMU opens it."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_DIRECT))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def qemu(program: str, domid: int) -> Iterator[subprocess.Popen[bytes]]:
    options = ["-xen-domid", str(domid), "-xen-attach", "-M", "xenpv", "-m", "1", "-nodefaults", "-display", "none"]
    process = subprocess.Popen(
        [program, *options, "-no-shutdown"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=die_with_parent(),
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def disk_back(number: int, kind: str, params: str) -> dict[str, str]:
    name = f"xvd{chr(ord('a') + (number - XVDA) // MINORS)}"
    return {
        "dev": name,
        "device-type": "disk",
        "params": params,
        "mode": "w",
        "type": kind,
        "removable": "0",
        "bootable": "0",
    }


def disk_front(number: int) -> dict[str, str]:
    return {"virtual-device": str(number), "device-type": "disk"}


@contextlib.contextmanager
def netback(store: Store, domid: int, number: int, mac: str, bridge: str) -> Iterator[None]:
    """The kernel's network backend, its interface on `bridge`."""
    device = XenDevice(store, "vif", "vif", domid, number)
    common = {"handle": str(number), "mac": mac}
    device.write({**common, "bridge": bridge, "script": "/bin/true"}, {**common, "mtu": "1500"})
    try:
        device.await_state(State.INIT_WAIT, State.CONNECTED)
        command("ip", "link", "set", f"vif{domid}.{number}", "master", bridge, "up")
        store.write(f"{device.back}/hotplug-status", "connected")
        device.await_state(State.CONNECTED)
        yield
    finally:
        device.remove()
