#!/usr/bin/python3
"""The bench of the guest's kernel module, in the rig.

    scripts/xen-rig run [--share DIR] tests/xen/bench_module.py [ARG ...]

Arguments are those of `virtio-dm bench`. The disk is a file in an ext4 file system: Xen's own qdisk opens it with
O_DIRECT. A QEMU for it is looked for in DIR/bin.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Final

from tests.xen.domu import Domu
from tests.xen.linux_guest import MODULE

IMAGE: Final = "/tmp/bench.ext4"
DIRECTORY: Final = "/tmp/bench"
SIZE: Final = "192M"


def main(arguments: list[str]) -> int:
    for command in (
        ["truncate", "-s", SIZE, IMAGE],
        ["/usr/sbin/mke2fs", "-q", "-t", "ext4", IMAGE],
        ["mkdir", DIRECTORY],
        ["mount", "-o", "loop", IMAGE, DIRECTORY],
    ):
        subprocess.run(command, check=True)
    with Domu("pv") as domu:
        domu.disconnect()
        relay = f"{sys.executable} -m tests.xen.relay {domu.domid}"
        command = ["virtio-dm", "bench", "--hypervisor", "xen", "--domid", str(domu.domid), "--guest", relay]
        environment = {"TMPDIR": DIRECTORY, "PATH": f"{os.environ['PATH']}:/rig/share/bin", "COLUMNS": "150"}
        done = subprocess.run([*command, "--module", MODULE, *arguments], env=os.environ | environment, check=False)
        return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
