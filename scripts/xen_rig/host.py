"""What the rig needs of the host: programs, fetched by apt when root, and a way to run them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from scripts.xen_rig.errors import RigError

TOOLS: Final = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mke2fs": "e2fsprogs",
    "setpriv": "util-linux",
    "dpkg-deb": "dpkg",
    "tar": "tar",
    "apt-get": "apt",
    "make": "make",
    "gcc-12": "gcc-12",
}
"""Programs and the Debian package of each."""
SEARCHED: Final = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"
"""Others than root have no sbin on their PATH, and mke2fs is there."""


def say(text: str) -> None:
    print(f"xen-rig: {text}", file=sys.stderr, flush=True)


def tool(name: str) -> str:
    """Path of a program of TOOLS."""
    path = shutil.which(name, path=SEARCHED)
    if path is None:
        raise RigError(f"{name} is missing; as root: apt-get install {TOOLS[name]}")
    return path


def require_tools() -> None:
    """Installs what is missing when root; raises RigError with the command to type otherwise."""
    missing = sorted({package for name, package in TOOLS.items() if shutil.which(name, path=SEARCHED) is None})
    if missing and os.geteuid() == 0 and shutil.which("apt-get"):
        say(f"installing Debian packages: {' '.join(missing)}")
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
        if not _quiet(install):
            _quiet(["apt-get", "update", "-qq"])
            _quiet(install)
        missing = sorted({package for name, package in TOOLS.items() if shutil.which(name, path=SEARCHED) is None})
    if missing:
        raise RigError(f"missing Debian packages; as root: apt-get install {' '.join(missing)}")


def run(command: Sequence[str | Path], directory: Path | None = None, **environment: str) -> str:
    """Output of a command. Raises RigError with the last line that it said."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=directory,
        env={**os.environ, **environment},
        check=False,
    )
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()] or ["no message"]
        raise RigError(f"{Path(command[0]).name} failed ({done.returncode}): {said[-1].strip()}")
    return done.stdout


def _quiet(command: Sequence[str]) -> bool:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, check=False)
    return done.returncode == 0
