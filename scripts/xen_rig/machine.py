"""The emulated machine: QEMU's command line, and its process.

What the settings are for is in docs/rig.md. KVM is not used: on hosts that are virtual machines themselves it cannot
run Xen's guests.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import termios
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from scripts.xen_rig.errors import RigError
from scripts.xen_rig.host import tool

MEMORY: Final = 3840
"""MiB: of dom0 1280, the rest for the domUs."""
CPU: Final = (
    "max"
    ",-smap"  # QEMU 7.2 kills a PV dom0 at its first iret
    ",-rdtscp"  # a PVH domU dies of it
    ",-erms,-fsrm"  # the kernels would copy byte by byte, as emulation does what hardware does in one go
    ",-xsave,-xsaveopt,-avx,-avx2,-f16c,-fma,-mpx,-pku"  # undefined instructions in a PVH domU's user space
)
XEN_ARGUMENTS: Final = (
    "console=com1 com1=115200,8n1 noreboot loglvl=warning spec-ctrl=no"
    " dom0_mem=1280M,max:1280M dom0_max_vcpus=1 dom0_vcpus_pin"
)
PVH_DOM0: Final = " dom0=pvh iommu=no-sharept"
"""For Xen. The IOMMU is Intel's and the processor has AMD's page tables, so they cannot share them."""
PVH_CPU: Final = ",x-force-features=on,+invtsc"
"""Without it Xen takes the TSC for unsafe, and each system call of a PVH dom0, whose Linux reads it, traps."""
PVH_MACHINE: Final = ("-machine", "q35", "-device", "intel-iommu,intremap=off,aw-bits=48")
DOM0_ARGUMENTS: Final = (
    "console=hvc0 loglevel=4 panic=0 mitigations=off"
    " rodata=off cryptomgr.notests apparmor=0 lsm=capability"  # 3 s less to boot: pages remapped, self-tests, policies
)
XENSTORED: Final = {1: "oxenstored", 2: "xenstored"}
"""Which of the two a machine of so many CPUs has: Debian starts the first unless told otherwise."""
STOP_TIMEOUT: Final = 5.0


@dataclass(frozen=True)
class Disks:
    """What the machine is given, in the order in which dom0 sees them."""

    xen: Path
    vmlinux: Path
    ramdisk: Path
    root: Path
    libraries: Path
    site: Path
    host: Path
    """A directory with what dom0 is to do."""
    share: Path
    """A directory of the host that dom0 sees live, both ways."""


def command(disks: Disks, cpus: int) -> list[str]:
    """Without the channels, which `Machine` adds."""
    pvh = dom0_kind() == "pvh"
    line = [tool("qemu-system-x86_64"), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    line += PVH_MACHINE if pvh else ("-machine", "pc")
    line += ["-accel", "tcg,thread=multi", "-smp", str(cpus), "-m", str(MEMORY)]
    line += ["-cpu", CPU + PVH_CPU if pvh else CPU]
    line += ["-kernel", str(disks.xen), "-append", XEN_ARGUMENTS + PVH_DOM0 if pvh else XEN_ARGUMENTS]
    arguments = f"{DOM0_ARGUMENTS} rig.xenstored={XENSTORED[cpus]}"
    line += ["-initrd", f"{_escaped(disks.vmlinux)} {arguments},{_escaped(disks.ramdisk)}"]
    for number, image in enumerate((disks.root, disks.libraries, disks.site)):
        line += ["-drive", f"id=disk{number},if=none,format=raw,readonly=on,file={_escaped(image)}"]
        line += ["-device", _virtio("blk", f",drive=disk{number}")]
    for tag, directory in (("host", disks.host), ("share", disks.share)):
        line += ["-fsdev", f"local,id={tag},security_model=none,multidevs=remap,path={_escaped(directory)}"]
        line += ["-device", _virtio("9p", f",fsdev={tag},mount_tag={tag}")]
    return line


def dom0_kind() -> Literal["pv", "pvh"]:
    """VIRTIO_DM_RIG_DOM0. Raises RigError if that is no kind."""
    kind = os.environ.get("VIRTIO_DM_RIG_DOM0") or "pv"
    if kind == "pv":
        return "pv"
    if kind == "pvh":
        return "pvh"
    raise RigError(f"VIRTIO_DM_RIG_DOM0 is {kind!r}: set it to pv or pvh")


def _virtio(name: str, options: str = "") -> str:
    # A PVH dom0's addresses are no machine addresses, so its devices have to go through the IOMMU.
    behind = ",iommu_platform=on,disable-legacy=on" if dom0_kind() == "pvh" else ""
    return f"virtio-{name}-pci{behind}{options}"


def _escaped(path: Path) -> str:
    """A comma ends a value in QEMU's options unless it is doubled."""
    return str(path).replace(",", ",,")


class Machine:
    """A running QEMU. Dies with this process, however that ends; `stop` or leaving the context ends it at once.

    `console`, `control` and `output` are the host's ends of the serial line and the two ports.
    """

    def __init__(self, disks: Disks, cpus: int, *, terminal: bool = False, saved: Path | None = None) -> None:
        """`terminal`: the serial line is this process's own terminal, for a person. `saved`: a state to begin with."""
        self.control, control = socket.socketpair()
        self.output, output = socket.socketpair()
        self.monitor, monitor = socket.socketpair()
        self.console: socket.socket | None = None
        theirs = [control, output, monitor]
        line = command(disks, cpus)
        # QEMU makes the terminal raw, and is killed before it could undo that.
        self._terminal = termios.tcgetattr(sys.stdin) if terminal else None
        if terminal:
            line += ["-chardev", "stdio,id=console,signal=off"]
        else:
            self.console, console = socket.socketpair()
            theirs.append(console)
            line += ["-chardev", f"socket,id=console,fd={console.fileno()}"]
        line += ["-serial", "chardev:console", "-device", _virtio("serial")]
        for number, (name, end) in enumerate((("control", control), ("output", output)), 1):
            line += ["-chardev", f"socket,id={name},fd={end.fileno()}"]
            line += ["-device", f"virtserialport,chardev={name},nr={number},name={name}"]
        line += ["-chardev", f"socket,id=monitor,fd={monitor.fileno()}", "-mon", "chardev=monitor,mode=control"]
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  stop() closes it; a pipe that nobody reads could fill
        inherited = [end.fileno() for end in theirs]
        with contextlib.ExitStack() as ends:
            for end in theirs:
                ends.enter_context(end)
            if saved is not None:
                memory = ends.enter_context(saved.open("rb"))
                inherited.append(memory.fileno())
                line += ["-incoming", f"fd:{memory.fileno()}"]
            self.process = subprocess.Popen(
                [tool("setpriv"), "--pdeathsig", "KILL", "--", *line],
                stdin=None if terminal else subprocess.DEVNULL,
                stdout=None if terminal else subprocess.DEVNULL,
                stderr=self._said,
                pass_fds=inherited,
                # Ctrl-C is for us, who then end it; in a terminal it goes to dom0 as a character anyway.
                process_group=-1 if terminal else 0,
            )

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self._terminal is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._terminal)
        for end in (self.control, self.output, self.monitor, self.console):
            if end is not None:
                end.close()
        self._said.close()

    def complaint(self) -> str:
        """What QEMU said last, once it has ended."""
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "no message")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
