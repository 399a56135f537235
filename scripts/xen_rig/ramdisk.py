"""dom0's first ramdisk: the cached part and, appended, the rig's scripts. Made at each start, in no time.

What it has below /rig is dom0's: its init, a pytest for saved states, `domu.cpio`, the part of the domUs' ramdisk that
is the rig's own, and the configurations of the spare domUs. So they are part of what a saved state depends on, and
this checkout is not.
"""

from __future__ import annotations

import io
from pathlib import Path

from scripts.xen_rig import domu_config, recipe
from scripts.xen_rig.cache import HERE
from scripts.xen_rig.cpio import Ramdisk

APPLETS = ("sh", "mount", "mkdir", "cp", "modprobe", "switch_root", "echo")


def content(cached: Path, cpus: int) -> bytes:
    """`cached`: boot.cpio of the root artefact. `cpus`: of the machine."""
    file = io.BytesIO()
    ramdisk = Ramdisk(file)
    for name in ("proc", "sys", "dev", "lower", "layer", "new"):
        ramdisk.directory(name)
    ramdisk.link("lib", "usr/lib")
    for applet in APPLETS:
        ramdisk.link(f"bin/{applet}", "busybox")
    ramdisk.file("init", _script("initramfs-init"), 0o755)
    ramdisk.file("rig/init", _script("init"), 0o755)
    ramdisk.file("rig/pytest", _script("pytest"), 0o755)
    ramdisk.file("rig/warm.py", _script("warm.py"))
    ramdisk.file("rig/domu.cpio", _of_domus())
    for name, spare in domu_config.spares(cpus).items():
        text = domu_config.text(spare.kind, name, emulator=spare.emulator, cpus=domu_config.cpus_for_domus(cpus))
        ramdisk.file(f"rig/spares/{name}", text.encode())
    ramdisk.close()
    return cached.read_bytes() + file.getvalue()


def _script(name: str) -> bytes:
    text = (HERE / "dom0" / name).read_text()
    text = text.replace("@BOOT_MODULES@", " ".join(recipe.BOOT_MODULES))
    return text.replace("@DOM0_MODULES@", " ".join(recipe.DOM0_MODULES)).encode()


def _of_domus() -> bytes:
    """First process and agent."""
    file = io.BytesIO()
    ramdisk = Ramdisk(file)
    ramdisk.copy(HERE / "domu/init", "init")
    for name in ("poweroff", "reboot"):
        ramdisk.copy(HERE / "domu" / name, f"usr/sbin/{name}")
    for path in [HERE / "__init__.py", *sorted((HERE / "domu_agent").glob("*.py"))]:
        ramdisk.copy(path, f"rig/agent/scripts/xen_rig/{path.relative_to(HERE)}")
    ramdisk.close()
    return file.getvalue()
