"""The module by itself: loaded, unbound and unloaded, it leaves nothing."""

from __future__ import annotations

import os
from pathlib import Path

from tests.xen.domu import Domu
from tests.xen.linux_guest import DRIVERS, MODULE, await_gone, await_path, log, module, shell, unload
from tests.xen.serving import MIB, Emulator, until


def test_loading_and_unloading_leaves_no_grant_no_port_and_no_memory(domu: Domu, tmp_path: Path, cycles: int) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(os.urandom(MIB))
    digest = ""
    shell(domu, f"modprobe -a {DRIVERS}")
    with Emulator(domu, f"blk,path={image}", "rng") as emulator:
        before = (0, 0, 0)
        for turn in range(cycles):
            shell(domu, f"insmod {MODULE}")
            await_path(domu, "/dev/vda")
            read = shell(domu, "sha256sum < /dev/vda")
            assert digest in ("", read)
            digest = read
            unload(domu)
            await_gone(domu, "/dev/vda")
            until(lambda: emulator.mappings() == 0, "grants are still mapped")
            ports = int(shell(domu, "grep -c virtio-msg /proc/interrupts || true"))
            free = int(shell(domu, "echo 3 > /proc/sys/vm/drop_caches; grep MemFree /proc/meminfo").split()[1])
            if turn == 1:
                before = (ports, emulator.descriptors(), free)
        assert ports == before[0] == 0
        assert emulator.descriptors() == before[1]
        # Each load has 4 MiB of arena for the disk alone.
        assert free > before[2] - 2048, f"{before[2] - free} KiB are gone"
        assert "still pending" not in log(domu)


def test_a_device_that_a_driver_in_user_space_had_is_the_kernels_next(domu: Domu) -> None:
    shell(domu, f"modprobe -a {DRIVERS}")
    with Emulator(domu, "rng"):
        with domu.agent() as guest:
            guest("connect", dev=0)
            guest("close", dev=0)
        with module(domu):
            available = "/sys/class/misc/hw_random/rng_available"
            until(lambda: "virtio_rng" in shell(domu, f"cat {available}"), f"no entropy source:\n{log(domu)}")
