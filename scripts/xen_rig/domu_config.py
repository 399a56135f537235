"""What a domU of the rig is made of: its xl.cfg(5). For those that tests start, and for the spare ones.

Spare domUs run already in the saved state, so that a test that wants an ordinary domU need not wait for one to boot.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

Kind = Literal["pv", "pvh"]

KERNEL: Final = Path("/usr/lib/rig/vmlinux")
RAMDISKS: Final = Path("/run/rig")
"""Made once in memory: `domu.cpio`, and `driver.cpio` with the emulator's libraries."""
KERNEL_ARGUMENTS: Final = (
    "console=hvc0 loglevel=4 panic=1 mitigations=off"
    " rodata=off cryptomgr.notests apparmor=0 lsm=capability"  # 3 s less to boot: pages remapped, self-tests, policies
)
MEMORY: Final = 256
"""MiB. Half of it is the limit of what may lie in the root, which is memory too."""
LIBRARIES_MEMORY: Final = 256
"""MiB more for the emulator's libraries."""


class Spare(NamedTuple):
    kind: Kind
    emulator: bool = False
    """With the emulator's libraries, for a driver domain."""


_SPARES: Final = {
    1: (Spare("pv"), Spare("pvh"), Spare("pvh"), Spare("pvh", emulator=True)),
    2: (Spare("pv"), Spare("pvh")),
}
"""Of a machine with so many CPUs. As many as tests/xen uses; each makes the saved state 170 MB larger, or 300 MB."""


def spares(cpus: int) -> dict[str, Spare]:
    """By name."""
    return {f"spare-{number}": spare for number, spare in enumerate(_SPARES[cpus], 1)}


def cpus_for_domus(cpus: int) -> str:
    """Not the one that dom0 is pinned to, if there is another."""
    return str(cpus - 1)


def ramdisk(emulator: bool) -> Path:
    """The one of a domU without peculiarities."""
    return RAMDISKS / ("driver.cpio" if emulator else "domu.cpio")


def text(
    kind: Kind,
    name: str,
    *,
    cpus: str,
    vcpus: int = 1,
    memory: int = MEMORY,
    emulator: bool = False,
    own_ramdisk: Path | None = None,
    extra: Sequence[str] = (),
    arguments: str = "",
) -> str:
    """The file for `xl create`. The parameters are those of tests/xen/domu.py."""
    lines = [
        f'type="{kind}"',
        f'name="{name}"',
        f"vcpus={vcpus}",
        f"memory={memory + (LIBRARIES_MEMORY if emulator else 0)}",
        f'cpus="{cpus}"',
        f'kernel="{KERNEL}"',
        f'ramdisk="{own_ramdisk or ramdisk(emulator)}"',
        f'cmdline="{KERNEL_ARGUMENTS} {arguments}"',
        # Without it a PVH domU dies in software emulation: rdtscp is not there.
        'tsc_mode="native"',
        'on_crash="destroy"',
        *(["driver_domain=1"] if emulator else []),
        *extra,
    ]
    return "\n".join(lines) + "\n"
