#!/usr/bin/python3
"""Where the time of a request at depth 1 goes in the guest's kernel and in dom0, for docs/design/009, in the rig.

    scripts/xen-rig run tests/xen/where_time_goes.py [KIB]

Requests are of 4 KiB, or of KIB. Prints the median of microseconds between neighbouring events, of our disk as it is by
default, with an emulator that sleeps at once and with one that stays awake, and of blkfront on blkback. Then, three
times, the time from the kick to the interrupt with models that do less and less: what one lacks is what it costs.
"""

from __future__ import annotations

import os
import re
import statistics
import sys
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Final

from cpp_ring import xen
from devices import Request
from devices.blk import Blk
from emulator.bench.kernel_run import XVDB
from emulator.bench.xen_drivers import blkback
from tests.xen.domu import Domu
from tests.xen.linux_guest import TRACING, await_gone, await_path, module, shell
from tests.xen.serving import MIB, Emulator

EVENTS: Final = (
    "block/block_bio_queue", "block/block_rq_issue", "block/block_rq_complete", "virtio_msg_xen/vmsgx_kick",
    "virtio_msg_xen/vmsgx_interrupt",
)  # fmt: skip
LINE: Final = re.compile(r"(\d+\.\d+): (\w+):")
AWAKE: Final = ("--poll-us", "always")
ASLEEP: Final = ("--poll-us", "0")


class WithoutFile(Blk):
    """All that the model does but the file's system call."""

    name = "without-file"

    def open(self) -> None:
        super().open()
        # To replace a method of one object is what the checker calls an error, and what is wanted here.
        self._image.read = self._image.write = lambda *_: None  # type: ignore[assignment, method-assign]


class WithoutModel(Blk):
    """What is left is the engine, its call into Python, and the events."""

    name = "without-model"

    def requestq(self, request: Request) -> None:
        request.written = request.writable_bytes
        request.writable[-1][-1:] = b"\0"


Gaps = dict[tuple[str, str], list[float]]


def requests(kib: int) -> int:
    return min(400, 8192 // kib)


def measure(domu: Domu, disk: str, write: bool, kib: int) -> Gaps:
    """Microseconds between neighbouring events."""
    ends = f"if=/dev/zero of={disk} oflag=direct" if write else f"if={disk} of=/dev/null iflag=direct"
    command = f"dd {ends} bs={kib}k count={requests(kib)} 2>/dev/null"
    shell(domu, f"echo > {TRACING}/trace; echo 1 > {TRACING}/tracing_on; {command}; echo 0 > {TRACING}/tracing_on")
    events = [(float(time), event) for time, event in LINE.findall(shell(domu, f"cat {TRACING}/trace"))]
    between: Gaps = defaultdict(list)
    for (before, first), (after, second) in pairwise(events):
        between[first, second].append((after - before) * 1e6)
    return between


def report(domu: Domu, disk: str, name: str, kib: int) -> None:
    for write in (False, True):
        print(name, "writes" if write else "reads")
        for (first, second), gaps in measure(domu, disk, write, kib).items():
            if len(gaps) > requests(kib) / 10:  # else of something else that the domU did
                print(f"  {first:>18} ... {second:18} {statistics.median(gaps):6.0f} us, {len(gaps)} times", flush=True)


def report_models(domu: Domu, image: Path, kib: int) -> None:
    here = Path(__file__).resolve()
    for model in ("blk", f"{here}:WithoutFile", f"{here}:WithoutModel"):
        with Emulator(domu, f"{model},path={image}", options=AWAKE):
            await_path(domu, "/dev/vda")
            for write in (False, True):
                gaps = measure(domu, "/dev/vda", write, kib)["vmsgx_kick", "vmsgx_interrupt"]
                name = f"{model.rpartition(':')[2]}, {'write' if write else 'read'}"
                print(f"{name:>20} {statistics.median(gaps):6.0f} us", flush=True)
        await_gone(domu, "/dev/vda")


def main(kib: int) -> None:
    image = Path("/tmp/disk.img")
    image.write_bytes(os.urandom(16 * MIB))
    with Domu("pv") as domu, module(domu), xen.open_store() as store:
        shell(domu, "modprobe xen-blkfront")
        domu.run(f"mount -t tracefs tracefs {TRACING}")
        for event in EVENTS:
            shell(domu, f"echo 1 > {TRACING}/events/{event}/enable")
        for options in ((), ASLEEP, AWAKE):
            with Emulator(domu, f"blk,path={image}", options=options):
                await_path(domu, "/dev/vda")
                report(domu, "/dev/vda", " ".join(("ours", *options)), kib)
            await_gone(domu, "/dev/vda")
        with blkback(store, domu.domid, XVDB, image):
            await_path(domu, "/dev/xvdb")
            report(domu, "/dev/xvdb", "blkfront, blkback", kib)
        for _ in range(3):
            report_models(domu, image, kib)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4)
