"""Kernel modules: which a list of names needs, and their unpacking out of the kernel's package."""

from __future__ import annotations

import lzma
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from scripts.xen_rig.errors import RigError
from scripts.xen_rig.host import run, tool

DIRECTORIES: Final = (
    "arch/x86/crypto", "crypto", "drivers/block", "drivers/char", "drivers/net/*.ko*", "drivers/net/xen-netback",
    "drivers/virtio", "drivers/xen", "fs/9p", "fs/ext4", "fs/fscache", "fs/jbd2", "fs/mbcache.ko*", "fs/netfs",
    "fs/overlayfs", "lib", "net/802", "net/9p", "net/bridge", "net/core", "net/llc",
)  # fmt: skip
"""Below .../kernel: unpacking all of a kernel's 4,000 modules takes many seconds."""


def unpack(package: Path, into: Path) -> str:
    """Unpacks the kernel and the DIRECTORIES of its modules. Returns the kernel's release."""
    patterns = [f"./lib/modules/*/{name}" for name in (*(f"kernel/{name}" for name in DIRECTORIES), "modules.*")]
    patterns += [f"./usr{pattern[1:]}" for pattern in patterns] + ["./boot/vmlinuz-*"]
    with subprocess.Popen([tool("dpkg-deb"), "--fsys-tarfile", package], stdout=subprocess.PIPE) as source:
        # Patterns that match nothing make tar fail; what is really missing is found below, by name.
        subprocess.run(
            [tool("tar"), "-x", "-C", into, "--no-same-owner", "--keep-directory-symlink", "--wildcards", *patterns],
            stdin=source.stdout, stderr=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        if source.stdout:
            source.stdout.read()
    decompress(into)
    kernels = list((into / "boot").glob("vmlinuz-*"))
    if source.returncode or len(kernels) != 1:
        raise RigError(f"{package.name} has no kernel: scripts/xen-rig build --refresh")
    return kernels[0].name.removeprefix("vmlinuz-")


def decompress(tree: Path) -> None:
    """Newer kernels' modules are compressed; busybox wants them plain."""
    for path in list(tree.rglob("*.ko.xz")):
        path.with_suffix("").write_bytes(lzma.decompress(path.read_bytes()))
        path.unlink()


def closure(names: Iterable[str], tree: Path) -> list[Path]:
    """Files of the modules `names` below `tree` (lib/modules/RELEASE) and of all they depend on, but for those that the
    kernel has built in. Raises RigError for one not there.
    """
    listed = tree / "modules.builtin"
    builtin = {canonical(Path(line).stem) for line in listed.read_text().split()} if listed.exists() else set()
    files = {canonical(path.stem): path for path in tree.rglob("*.ko")}
    found: dict[str, Path] = {}
    waiting = [canonical(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found or name in builtin:
            continue
        if name not in files:
            raise RigError(f"kernel module {name} is in none of DIRECTORIES of scripts/xen_rig/modules.py: add its own")
        found[name] = files[name]
        waiting += depends(files[name].read_bytes())
    return sorted(found.values())


def depends(module: bytes) -> list[str]:
    """Names out of the `depends` field of a module's .modinfo section."""
    field = re.search(rb"\0depends=([^\0]*)\0", module)
    return [canonical(name) for name in field[1].decode().split(",") if name] if field else []


def canonical(name: str) -> str:
    """Modules' files have - or _ as their authors liked it; names have _."""
    return name.replace("-", "_")


def keep_only(names: Iterable[str], modules: Path) -> None:
    """Removes the other modules from `modules` (lib/modules/RELEASE)."""
    kept = {path.relative_to(modules) for path in closure(names, modules)}
    for path in list(modules.rglob("*.ko")):
        if path.relative_to(modules) not in kept:
            path.unlink()
    for path in sorted(modules.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            shutil.rmtree(path)


def index(root: Path, release: str, depmod: list[str]) -> None:
    """Writes modules.dep and its like. `depmod`: the command, of the root itself."""
    run([*depmod, "-b", str(root), release])
