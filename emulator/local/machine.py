"""Local machines by name: where they live, who may use them, and starting and stopping the broker of one."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import stat
import sys
import time
from pathlib import Path
from typing import Final

from cpp_ring.machine import DEFAULT_MACHINE
from cpp_ring.machine import machine_directory as find_machine_directory
from emulator.local.control import Control
from emulator.local.errors import MachineError

SUN_PATH_MAX: Final = 107
START_SECONDS: Final = 10.0
LOCK_ATTEMPTS: Final = 20
ROOT: Final = Path(__file__).parent.parent.parent
"""What a broker's process must find `emulator` under."""


def machine_directory(name: str = DEFAULT_MACHINE) -> Path:
    """The directory of a machine; made by `ensure_broker`. Raises MachineError EINVAL for a bad name."""
    try:
        return find_machine_directory(name).absolute()
    except ValueError as error:
        raise MachineError(errno.EINVAL, str(error)) from None


def socket_path(directory: Path, domid: int, name: str) -> Path:
    """The `xenstored` or `hypervisor` socket of a domain. Raises MachineError ENAMETOOLONG."""
    path = directory / f"dom{domid}" / name
    if len(os.fsencode(path)) > SUN_PATH_MAX:
        raise MachineError(
            errno.ENAMETOOLONG,
            f"{path} is too long for a socket (over {SUN_PATH_MAX} bytes): set VIRTIO_DM_RUNTIME_DIR to a shorter path",
        )
    return path


def prepare_directory(directory: Path) -> None:
    """Makes it, for this user alone; its parent too. Raises MachineError EACCES if others could reach in."""
    try:
        directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
        for place, forbidden in ((directory.parent, 0o022), (directory, 0o077)):
            status = place.lstat()
            sticky = bool(status.st_mode & stat.S_ISVTX) and place != directory
            if not stat.S_ISDIR(status.st_mode):
                raise MachineError(errno.EACCES, f"{place} is not a directory")
            if status.st_uid not in (os.geteuid(), 0) or (place == directory and status.st_uid != os.geteuid()):
                raise MachineError(errno.EACCES, f"{place} belongs to user {status.st_uid}, not to {os.geteuid()}")
            if status.st_mode & forbidden and not sticky:
                mode = stat.S_IMODE(status.st_mode)
                raise MachineError(errno.EACCES, f"{place} is open to other users (mode {mode:o}): chmod go-rwx it")
    except MachineError:
        raise
    except OSError as error:
        number = error.errno or errno.EIO
        raise MachineError(number, f"cannot make {directory}: {os.strerror(number).lower()}") from None


def lock_machine(directory: Path) -> int:
    """Makes the directory and takes its lock for life; returns the descriptor. Raises MachineError EBUSY."""
    prepare_directory(directory)
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    for _ in range(LOCK_ATTEMPTS):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)  # a broker that was killed a moment ago may still hold it
        else:
            os.ftruncate(lock, 0)
            os.write(lock, f"{os.getpid()}\n".encode())
            return lock
    os.close(lock)
    raise MachineError(errno.EBUSY, f"{directory} has a broker already: process {_pid(directory)}")


def start_lock(directory: Path) -> int:
    """Held by whoever starts a broker, until it answers. Waits for it; returns the descriptor."""
    prepare_directory(directory)
    lock = os.open(directory / "start.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def running(name: str = DEFAULT_MACHINE) -> bool:
    """Whether the machine has a broker that answers."""
    try:
        with Control(machine_directory(name), timeout=2.0):
            return True
    except MachineError as error:
        if error.errno == errno.EINVAL:
            raise
        return False


def ensure_broker(name: str = DEFAULT_MACHINE) -> Path:
    """The directory of a machine whose broker answers, started (detached, log in `broker.log`) if need be.

    Several at once start one. Raises MachineError.
    """
    directory = machine_directory(name)
    if running(name):
        return directory
    lock = start_lock(directory)
    try:
        if not running(name):
            _start(name, directory)
    finally:
        os.close(lock)
    return directory


def stop(name: str = DEFAULT_MACHINE) -> None:
    """Ends the broker, its domains and its store; returns when it is gone. Raises MachineError ENOENT, ETIMEDOUT."""
    with Control(machine_directory(name)) as control:
        control.stop()


def create_domain(name: str, domid: int) -> None:
    """Adds a domain. Raises MachineError: EEXIST, EINVAL, ENOENT (no broker)."""
    with Control(machine_directory(name)) as control:
        control.create_domain(domid)


def destroy_domain(name: str, domid: int) -> None:
    """The death of a domain: its connections end, its pages and ports are gone. Raises MachineError ENOENT, EINVAL."""
    with Control(machine_directory(name)) as control:
        control.destroy_domain(domid)


def domains(name: str = DEFAULT_MACHINE) -> list[int]:
    """Domids in order, dom0 first. Raises MachineError ENOENT (no broker)."""
    with Control(machine_directory(name)) as control:
        return control.domains()


def _start(name: str, directory: Path) -> None:
    """Starts the process and waits until it says that it answers."""
    socket_path(directory, 0, "hypervisor")
    ready, write = os.pipe2(os.O_CLOEXEC)
    log = directory / "broker.log"
    search = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    try:
        child = os.posix_spawn(
            sys.executable,
            [sys.executable, "-P", "-m", "emulator.local", name, "--daemon-fd", "3"],
            {**os.environ, "PYTHONPATH": os.pathsep.join([*search, os.fspath(ROOT)])},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.fspath(log), flags, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
                (os.POSIX_SPAWN_DUP2, write, 3),
            ],
            setsid=True,
        )
    finally:
        os.close(write)
    try:
        said = _read_all(ready, START_SECONDS)
    finally:
        os.close(ready)
        os.kill(child, signal.SIGKILL)  # not the broker but its parent, which ended unless it hangs
        os.waitpid(child, 0)
    if said != b"ready\n":
        text = log.read_text(errors="replace").strip().splitlines()
        why = text[-1] if text else f"it did not answer in {START_SECONDS:g} s"
        raise MachineError(errno.ETIMEDOUT, f"cannot start the broker of {directory}: {why} (more in {log})")


def _read_all(fd: int, seconds: float) -> bytes:
    """What comes before the writer closes or the time is over."""
    data = b""
    deadline = time.monotonic() + seconds
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    while (left := deadline - time.monotonic()) > 0 and poller.poll(left * 1000):
        more = os.read(fd, 4096)
        if not more:
            break
        data += more
    return data


def _pid(directory: Path) -> str:
    try:
        return (directory / "lock").read_text().strip()[:10] or "unknown"
    except OSError:
        return "unknown"
