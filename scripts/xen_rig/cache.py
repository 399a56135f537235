"""Where artefacts are kept: each in a directory named by the hash of what it is made of, which appears at once.

An artefact is built in a directory of another name and renamed, so that one which is there is whole, whatever was
killed. A lock for each kind keeps builders from building the same thing twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from scripts.xen_rig.errors import RigError
from scripts.xen_rig.host import say

KEPT: Final = 3
"""Artefacts of a kind that stay: a few checkouts share the cache."""
HERE: Final = Path(__file__).parent
ATTEMPTS: Final = 20
PAUSE: Final = 0.1
"""Seconds. Nobody is told that a lock is waited for that somebody has for a moment only."""


def directory() -> Path:
    named = os.environ.get("VIRTIO_DM_RIG_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    place = Path(named).resolve() if named else Path(home) / "virtio-dm" / "xen-rig"
    if " " in str(place):
        raise RigError(f"QEMU cannot load a kernel from {place}: set VIRTIO_DM_RIG_CACHE to a path without a space")
    return place


def key(*parts: object, files: Iterable[Path] = ()) -> str:
    """Of the printed form of `parts` and the content of `files` with their names."""
    digest = hashlib.sha256(repr(parts).encode())
    for path in sorted(files):
        content = path.read_bytes()
        digest.update(f"\0{path.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def sources(*names: str) -> list[Path]:
    """Modules of this package, whose change makes a new artefact."""
    return [HERE / name for name in names]


@contextlib.contextmanager
def lock(place: Path, kind: str) -> Iterator[None]:
    """Held by whoever builds something of this kind. The kernel gives it back when its holder dies."""
    place.mkdir(parents=True, exist_ok=True)
    with (place / f"lock-{kind}").open("a") as file:
        for _ in range(ATTEMPTS):
            if _lock(file.fileno()):
                break
            time.sleep(PAUSE)
        else:
            say(f"waiting for another build in {place}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def scratch(place: Path) -> Iterator[Path]:
    """A directory for one run. Each is locked by its run, so that those of runs that were killed can be told."""
    place.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with (place / "runs.lock").open("a") as runs:
            fcntl.flock(runs, fcntl.LOCK_EX)
            for path in place.glob("run-*"):
                with _opened(path) as descriptor:
                    if _lock(descriptor):
                        shutil.rmtree(path, ignore_errors=True)
            directory = Path(tempfile.mkdtemp(prefix="run-", dir=place))
            _lock(stack.enter_context(_opened(directory)))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        yield directory


def is_there(place: Path, kind: str, identity: str) -> bool:
    return (place / f"{kind}-{identity}").is_dir()


def artefact(place: Path, kind: str, identity: str, make: Callable[[Path], None]) -> Path:
    """The directory `kind`-`identity`, made by `make` in an empty directory if it is not there."""
    final = place / f"{kind}-{identity}"
    if not final.is_dir():
        with lock(place, kind):
            if not final.is_dir():
                _remove_remains(place, kind)
                work = Path(tempfile.mkdtemp(prefix=f"new-{kind}-", dir=place))
                try:
                    make(work)
                    work.chmod(0o755)
                    work.rename(final)
                finally:
                    shutil.rmtree(work, ignore_errors=True)
    os.utime(final)
    _forget_old(place, kind)
    return final


def forget(artefact: Path) -> None:
    """Renamed first: a directory that is there is whole."""
    with contextlib.suppress(OSError):
        shutil.rmtree(artefact.rename(artefact.with_name(f"new-{artefact.name}")), ignore_errors=True)


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_remains(place: Path, kind: str) -> None:
    """Of builders that were killed: whoever holds the lock is the only one."""
    for path in place.glob(f"new-{kind}-*"):
        shutil.rmtree(path, ignore_errors=True)


def _forget_old(place: Path, kind: str) -> None:
    def age(path: Path) -> float:
        with contextlib.suppress(FileNotFoundError):
            return path.stat().st_mtime
        return 0.0

    for path in sorted(place.glob(f"{kind}-*"), key=age, reverse=True)[KEPT:]:
        forget(path)
