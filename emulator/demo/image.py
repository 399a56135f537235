"""The disk of the demo: an ext4 file system made of files that are on every machine which can run the demo."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from emulator.exit_codes import ExitCode, Failure

MIB: Final = 1 << 20
FILE_SYSTEM_BYTES: Final = 64 * MIB
SCRATCH_BYTES: Final = 8 * MIB
"""Behind the file system, for the demo to write to."""

_MOST_BYTES: Final = 40 * MIB
_LARGEST_FILE: Final = 4 * MIB
_SKIPPED: Final = {"__pycache__", "site-packages", "dist-packages", "test", "tests"}
_SBIN: Final = ("/usr/sbin", "/sbin")
"""Often missing in the PATH of who is not root."""


@dataclass(frozen=True, slots=True)
class Image:
    """The image, and what it was made of."""

    path: Path
    source: Path
    files: int


def find_mke2fs() -> Path:
    """Raises Failure: how to install it."""
    found = shutil.which("mke2fs", path=os.pathsep.join([os.environ.get("PATH", os.defpath), *_SBIN]))
    if found is None:
        raise Failure(ExitCode.NOT_INSTALLED, "mke2fs is not installed; as root: apt-get install e2fsprogs")
    return Path(found)


def make(mke2fs: Path, directory: Path, progress: Callable[[float], None]) -> Image:
    """Makes `directory`/disk.img from the Python library. Raises Failure, OSError."""
    source = Path(sysconfig.get_path("stdlib"))
    copy = directory / "files"
    copied = files = 0
    for path in _files(source):
        size = path.stat().st_size
        if size > _LARGEST_FILE or copied + size > _MOST_BYTES:
            continue
        target = copy / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        copied += size
        files += 1
        progress(0.8 * copied / _MOST_BYTES)
    image = Image(directory / "disk.img", source, files)
    made = subprocess.run(
        [mke2fs, "-q", "-F", "-t", "ext4", "-d", copy, image.path, f"{FILE_SYSTEM_BYTES // 1024}k"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if made.returncode:
        reason = (made.stderr.strip().splitlines() or ["it does not say why"])[-1]
        raise Failure(ExitCode.INTERNAL, f"{mke2fs} failed: {reason}")
    shutil.rmtree(copy)
    os.truncate(image.path, FILE_SYSTEM_BYTES + SCRATCH_BYTES)
    return image


def _files(root: Path) -> Iterator[Path]:
    """Regular files that may be read, in order."""
    for directory, names, files in os.walk(root):
        names[:] = sorted(set(names) - _SKIPPED)
        for name in sorted(files):
            path = Path(directory, name)
            if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):
                yield path
