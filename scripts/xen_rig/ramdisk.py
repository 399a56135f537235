"""dom0's first ramdisk: the cached part and, appended, the rig's scripts. Made at each start, in no time."""

from __future__ import annotations

import io
from pathlib import Path

from scripts.xen_rig import recipe
from scripts.xen_rig.cache import HERE
from scripts.xen_rig.cpio import Ramdisk

APPLETS = ("sh", "mount", "mkdir", "cp", "modprobe", "switch_root", "echo")


def content(cached: Path) -> bytes:
    """`cached`: boot.cpio of the root artefact."""
    file = io.BytesIO()
    ramdisk = Ramdisk(file)
    for name in ("proc", "sys", "dev", "lower", "layer", "new"):
        ramdisk.directory(name)
    ramdisk.link("lib", "usr/lib")
    for applet in APPLETS:
        ramdisk.link(f"bin/{applet}", "busybox")
    ramdisk.file("init", _script("initramfs-init"), 0o755)
    ramdisk.file("rig/init", _script("init"), 0o755)
    ramdisk.close()
    return cached.read_bytes() + file.getvalue()


def _script(name: str) -> bytes:
    text = (HERE / "dom0" / name).read_text()
    text = text.replace("@BOOT_MODULES@", " ".join(recipe.BOOT_MODULES))
    return text.replace("@DOM0_MODULES@", " ".join(recipe.DOM0_MODULES)).encode()
