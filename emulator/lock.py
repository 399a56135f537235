"""One process for one job: locks that end with the process that holds them, however it ends."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

from emulator.exit_codes import ExitCode, Failure

_FLOCK = struct.Struct("@hhqqi4x")  # struct flock: l_type, l_whence, l_start, l_len, l_pid


def take(path: Path, job: str) -> int:
    """Takes the lock and writes our process id into it; returns the descriptor that holds it.

    `job` completes "... already". Raises Failure ALREADY_RUNNING, NOT_PERMITTED.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        why = (error.strerror or "").lower()
        raise Failure(ExitCode.NOT_PERMITTED, f"cannot open the lock {path}: {why}") from error
    try:
        # An open-file-description lock, unlike flock, can be asked after without being taken.
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        pid = _pid(fd)
        os.close(fd)
        raise Failure(ExitCode.ALREADY_RUNNING, f"process {pid or 'unknown'} {job} already; end it first") from error
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def holder(path: Path) -> int | None:
    """The process id of who holds the lock; None if nobody does, or it cannot be known."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        question = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
        answer: bytes = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, question)
        return None if _FLOCK.unpack(answer)[0] == fcntl.F_UNLCK else _pid(fd)
    except OSError:
        return None
    finally:
        os.close(fd)


def emulator_lock(domain_directory: Path) -> Path:
    """The lock of a domain's emulator."""
    return domain_directory / "emulator.lock"


def supervisor_lock(machine_directory: Path) -> Path:
    """The lock of a machine's supervisor."""
    return machine_directory / "supervisor.lock"


def _pid(fd: int) -> int | None:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else None
