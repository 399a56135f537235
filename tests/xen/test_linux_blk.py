"""Disks of a domU that its own kernel drives: guest/linux, and above it the stock virtio_blk and ext4."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from cpp_ring.store import Store
from emulator import toolstack
from emulator.machine import open_machine, parse_hypervisor
from tests.xen.domu import Domu
from tests.xen.linux_guest import GET_CONFIG, module, shell, trace, traced
from tests.xen.serving import MIB, SECTOR, Emulator, until

SERIALS: Final = ("plain", "files", "growing", "fixed")
GROWING: Final = SERIALS.index("growing")


class Disks:
    """A domU with a disk for each of SERIALS, whose images have random content but for `files`, which is empty."""

    def __init__(self, linux: Domu, directory: Path) -> None:
        self.linux = linux
        self.images = {serial: directory / serial for serial in SERIALS}
        for serial, image in self.images.items():
            image.write_bytes(b"" if serial == "files" else os.urandom(8 * MIB))

    @property
    def specs(self) -> list[str]:
        options = {"files": f",size={64 * MIB}", "fixed": ",readonly=on"}
        images = self.images.items()
        return [f"blk,path={image},serial={serial}{options.get(serial, '')}" for serial, image in images]

    def name(self, serial: str) -> str:
        """Of the block device, without /dev/."""
        path = shell(self.linux, f"grep -lx {serial} /sys/block/vd*/serial")
        return Path(path).parent.name

    def sha256(self, serial: str) -> tuple[str, str]:
        """As the guest reads it, and as it is in the image."""
        seen = shell(self.linux, f"sha256sum < /dev/{self.name(serial)}").split()[0]
        return seen, hashlib.sha256(self.images[serial].read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def disks(domu: Domu, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disks]:
    with module(domu), traced(domu, "vmsgx_request"):
        disks = Disks(domu, tmp_path_factory.mktemp("disks"))
        with Emulator(domu, *disks.specs):
            until(lambda: len(shell(domu, "ls -d /dev/vd? || true").split()) == len(SERIALS), "no disks")
            yield disks
        until(lambda: domu.run("ls /dev/vd?").code != 0, "the disks are still there")


def test_the_config_space_is_read_once_however_many_fields_the_driver_reads(disks: Disks) -> None:
    assert sum(GET_CONFIG in line for line in trace(disks.linux)) == len(SERIALS)


def test_what_the_guest_reads_is_in_the_image_and_what_it_writes_is_too(disks: Disks) -> None:
    before, image = disks.sha256("plain")
    assert before == image
    disk = f"/dev/{disks.name('plain')}"
    shell(disks.linux, f"dd if=/dev/urandom of={disk} bs=64k count=64 seek=32 conv=fsync 2>&1")
    after, image = disks.sha256("plain")
    assert after == image != before


def test_requests_of_all_sizes_and_many_at_a_time_are_whole(disks: Disks) -> None:
    """Up to what the kernel puts into one request, past the page cache, 32 at a time."""
    program = f"""
import concurrent.futures, hashlib, mmap, os, random
disk = os.open("/dev/{disks.name("plain")}", os.O_RDONLY | os.O_DIRECT)
content = open("/dev/{disks.name("plain")}", "rb").read()
def read(seed):
    chosen = random.Random(seed)
    size = chosen.choice((1, 2, 7, 8, 9, 31, 64, 255, 2047, 4096)) * {SECTOR}
    offset = chosen.randrange((len(content) - size) // {SECTOR}) * {SECTOR}
    with mmap.mmap(-1, size) as memory:
        assert os.preadv(disk, [memory], offset) == size
        return memory[:] == content[offset : offset + size]
with concurrent.futures.ThreadPoolExecutor(32) as pool:
    print(all(pool.map(read, range(120))), hashlib.sha256(content).hexdigest())
"""
    output = shell(disks.linux, f"python3 -c '{program}'")
    assert output.split() == ["True", hashlib.sha256(disks.images["plain"].read_bytes()).hexdigest()]


def test_a_file_system_keeps_a_tree_over_unmount(disks: Disks) -> None:
    tree = "/rig/site/package/emulator"
    sums = "find . -type f | sort | xargs sha256sum | sha256sum"
    disk = f"/dev/{disks.name('files')}"
    mount = f"mkdir -p /mnt && mount -t ext4 {disk} /mnt"
    wanted = shell(disks.linux, f"cd {tree} && {sums}")
    # By its path: busybox has one of this name.
    shell(disks.linux, f"/usr/sbin/mke2fs -q -t ext4 {disk} && {mount} && cp -r {tree} /mnt/tree && umount /mnt")
    assert shell(disks.linux, f"{mount} && cd /mnt/tree && {sums}") == wanted
    shell(disks.linux, "umount /mnt")


def test_discarded_space_reads_as_zeroes_and_is_given_back(disks: Disks) -> None:
    disk, image = f"/dev/{disks.name('plain')}", disks.images["plain"]
    before = image.stat().st_blocks
    shell(disks.linux, f"blkdiscard -o {MIB} -l {4 * MIB} {disk}")
    assert image.stat().st_blocks <= before - 4 * MIB // 512
    assert not any(image.read_bytes()[MIB : 5 * MIB])
    assert shell(disks.linux, f"dd if={disk} bs=1M skip=1 count=4 2>/dev/null | tr -d '\\0' | wc -c") == "0"


def test_the_guest_sees_a_disk_that_grows(disks: Disks, dom0: Store) -> None:
    size = f"/sys/block/{disks.name('growing')}/size"
    assert shell(disks.linux, f"cat {size}") == str(8 * MIB // SECTOR)
    machine = open_machine(parse_hypervisor("xen"))
    toolstack.update(machine, dom0, disks.linux.domid, GROWING, {"size": str(12 * MIB)})
    until(lambda: shell(disks.linux, f"cat {size}") == str(12 * MIB // SECTOR), "the guest does not see the new size")
    shell(disks.linux, f"dd if=/dev/zero of=/dev/{disks.name('growing')} bs=1M seek=11 count=1 conv=fsync 2>&1")
    assert not any(disks.images["growing"].read_bytes()[11 * MIB :])


def test_a_read_only_disk_refuses_writes_and_is_unchanged(disks: Disks) -> None:
    before, image = disks.sha256("fixed")
    assert before == image
    name = disks.name("fixed")
    assert shell(disks.linux, f"cat /sys/block/{name}/ro") == "1"
    assert disks.linux.run(f"dd if=/dev/zero of=/dev/{name} bs=4k count=1 conv=fsync").code != 0
    assert disks.sha256("fixed") == (before, before)
