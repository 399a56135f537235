#!/usr/bin/python3
"""Where the time of a read of 4 KiB goes in the guest's kernel, for docs/design/009, in the rig.

    scripts/xen-rig run tests/xen/where_time_goes.py

Prints the median of microseconds between neighbouring events, of our disk as its emulator is by default, of the same
with an emulator that stays awake, and of blkfront on blkback.
"""

from __future__ import annotations

import os
import re
import statistics
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Final

from cpp_ring import xen
from emulator.bench.kernel_run import XVDB
from emulator.bench.xen_drivers import blkback
from tests.xen.domu import Domu
from tests.xen.linux_guest import TRACING, await_gone, await_path, module, shell
from tests.xen.serving import MIB, Emulator

READS: Final = 400
EVENTS: Final = (
    "block/block_bio_queue", "block/block_rq_issue", "block/block_rq_complete", "virtio_msg_xen/vmsgx_kick",
    "virtio_msg_xen/vmsgx_interrupt",
)  # fmt: skip
LINE: Final = re.compile(r"(\d+\.\d+): (\w+):")


def report(domu: Domu, disk: str, name: str) -> None:
    domu.run(f"mount -t tracefs tracefs {TRACING}")
    for event in EVENTS:
        shell(domu, f"echo 1 > {TRACING}/events/{event}/enable")
    read = f"dd if={disk} of=/dev/null bs=4k count={READS} iflag=direct 2>/dev/null"
    shell(domu, f"echo > {TRACING}/trace; echo 1 > {TRACING}/tracing_on; {read}; echo 0 > {TRACING}/tracing_on")
    events = [(float(time), event) for time, event in LINE.findall(shell(domu, f"cat {TRACING}/trace"))]
    between: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (before, first), (after, second) in pairwise(events):
        between[first, second].append((after - before) * 1e6)
    print(name)
    for (first, second), gaps in between.items():
        if len(gaps) > READS / 10:  # else of something else that the domU did
            print(f"  {first:>18} ... {second:18} {statistics.median(gaps):6.0f} us, {len(gaps)} times")


def main() -> None:
    image = Path("/tmp/disk.img")
    image.write_bytes(os.urandom(16 * MIB))
    with Domu("pv") as domu, module(domu), xen.open_store() as store:
        shell(domu, "modprobe xen-blkfront")
        for options in ((), ("--poll-us", "always")):
            with Emulator(domu, f"blk,path={image}", options=options):
                await_path(domu, "/dev/vda")
                report(domu, "/dev/vda", " ".join(("ours", *options)))
            await_gone(domu, "/dev/vda")
        with blkback(store, domu.domid, XVDB, image):
            await_path(domu, "/dev/xvdb")
            report(domu, "/dev/xvdb", "blkfront, blkback")


if __name__ == "__main__":
    main()
