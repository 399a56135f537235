"""A domU whose root file system is on a disk that a Python model serves."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from scripts.xen_rig.domu_config import Kind
from tests.xen.domu import OUR_RAMDISK, RAMDISK, SITE, START_TIMEOUT, Domu, xl
from tests.xen.linux_guest import shell
from tests.xen.serving import MIB, Emulator

DISK = "/dev/vda"
SIZE = 256 * MIB


class Files(NamedTuple):
    image: Path
    ramdisk: Path


class Rooted(Domu):
    """Its disk is there while it boots."""

    def __init__(self, kind: Kind, files: Files) -> None:
        super().__init__(kind, own_ramdisk=files.ramdisk, arguments=f"rig.root={DISK}")
        self.spec = f"blk,path={files.image}"
        self.emulator: Emulator | None = None

    def connect(self, timeout: float = START_TIMEOUT) -> None:
        self.domid = int(xl("domid", self.name))
        self.emulator = Emulator(self, self.spec)
        super().connect(timeout)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Files]:
    """A ramdisk that has the module, and an ext4 file system with what else would be the domU's ramdisk."""
    directory = tmp_path_factory.mktemp("root")
    tree = directory / "tree"
    tree.mkdir()
    ramdisk = directory / "ramdisk.cpio"
    for archive in (RAMDISK, OUR_RAMDISK, SITE):
        with archive.open("rb") as content, ramdisk.open("ab") as whole:
            done = subprocess.run(
                ["busybox", "cpio", "-idu"], cwd=tree, stdin=content, stderr=subprocess.PIPE, check=False
            )
            assert done.returncode == 0, done.stderr[-500:]
            content.seek(0)
            shutil.copyfileobj(content, whole, 1 << 20)
    (tree / "new").mkdir()
    path = directory / "root.img"
    path.touch()
    command = ["/usr/sbin/mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(path), f"{SIZE >> 20}M"]
    subprocess.run(command, check=True)
    yield Files(path, ramdisk)
    path.unlink()
    ramdisk.unlink()


@pytest.mark.parametrize("kind", ["pv", "pvh"])
def test_a_domu_lives_on_it_and_outlives_the_emulator(files: Files, kind: Kind) -> None:
    with Rooted(kind, files) as domu:
        first = domu.emulator
        assert first is not None
        assert f"{DISK} / ext4 rw" in shell(domu, "cat /proc/mounts")
        shell(domu, "echo kept > /kept && sync")
        first.kill()
        with Emulator(domu, domu.spec):
            # Past the page cache: what it starts is on the disk.
            shell(domu, "echo 3 > /proc/sys/vm/drop_caches")
            assert shell(domu, "python3 -c 'import json; print(open(\"/kept\").read())'") == "kept"
            domu.shutdown()
