"""The guest's kernel module, guest/linux, compiled for the rig's kernel; the host needs no headers of it. Here, and not
for those who use it, each warning that the kernel's makefiles know of is an error.

virtio_msg_xen.ko
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from scripts.xen_rig import cache
from scripts.xen_rig.errors import RigError
from scripts.xen_rig.host import run, say, tool
from scripts.xen_rig.packages import Apt, Package

REPOSITORY: Final = Path(__file__).parent.parent.parent
NAME: Final = "virtio_msg_xen.ko"


def make(place: Path, apt: Apt, packages: Sequence[Package]) -> Path:
    """The compiled module. Raises RigError with the compiler's first complaint."""
    builder = REPOSITORY / "scripts/build-guest"
    sources = [*(REPOSITORY / "guest/linux").glob("*.[ch]"), REPOSITORY / "guest/linux/Kbuild"]
    wire = REPOSITORY / "protocol/virtio_msg_xen.h"
    kernel = _kernel(packages)
    identity = cache.key(kernel, files=[*sources, wire, builder, *cache.sources("guest_module.py")])

    def build(out: Path) -> None:
        say("compiling the guest's kernel module")
        headers = _headers(out.resolve() / "headers", apt, kernel)
        # The debugger's information is most of the work, and nobody looks at it here; BTF is made of it.
        libraries = out.resolve() / "headers/usr/lib/x86_64-linux-gnu"
        command: list[str | Path] = [builder, "--kernel", headers, "--output", out.resolve() / "built"]
        flags = "CONFIG_DEBUG_INFO_BTF_MODULES= W=1"
        run(command, KCFLAGS="-g0 -Werror", MAKEFLAGS=flags, LD_LIBRARY_PATH=str(libraries))
        (out / "built" / NAME).rename(out / NAME)
        for name in ("headers", "built"):
            shutil.rmtree(out / name)

    return cache.artefact(place, "module", identity, build) / NAME


def _kernel(packages: Sequence[Package]) -> Package:
    found = [package for package in packages if re.match(r"linux-image-[0-9]", package.name)]
    if len(found) != 1:
        raise RigError(
            f"{len(found)} kernels are among the packages, not one: VIRTIO_DM_RIG_KERNEL names one, if it is set"
        )
    return found[0]


def _headers(into: Path, apt: Apt, kernel: Package) -> Path:
    """What a module is compiled with, unpacked below `into`; the directory that stands for the kernel."""
    headers = kernel.name.replace("linux-image-", "linux-headers-")
    needed = [package.name for package in apt.needs(f"{headers}={kernel.version}")]
    names = [name for name in needed if name.startswith(("linux-headers-", "linux-kbuild-"))]
    wanted = [*(f"{name}={kernel.version}" for name in names), "libelf1"]  # that of linux-kbuild's programs
    for package in apt.fetch(wanted, into.with_name("packages")):
        run([tool("dpkg-deb"), "--extract", package, into])
        package.unlink()
    into.with_name("packages").rmdir()
    directory = into / "usr/src" / headers
    # It names the other one as it would be installed.
    makefile = directory / "Makefile"
    makefile.write_text(makefile.read_text().replace("/usr/src/", f"{into}/usr/src/"))
    return directory
