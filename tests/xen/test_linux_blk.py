"""Disks of a domU that its own kernel drives: guest/linux, and above it the stock virtio_blk and ext4."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.xen.domu import Domu
from tests.xen.linux_guest import await_gone, await_path, module, shell
from tests.xen.serving import MIB, SECTOR, Emulator


@pytest.fixture(scope="module")
def linux(domu: Domu) -> Iterator[Domu]:
    with module(domu) as loaded:
        yield loaded


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(16 * MIB))
    return path


def test_what_the_guest_reads_is_in_the_image_and_what_it_writes_is_too(linux: Domu, image: Path) -> None:
    with Emulator(linux, f"blk,path={image}"):
        await_path(linux, "/dev/vda")
        digest = hashlib.sha256(image.read_bytes()).hexdigest()
        assert shell(linux, "sha256sum < /dev/vda").split()[0] == digest
        shell(linux, "dd if=/dev/urandom of=/dev/vda bs=64k count=64 seek=32 conv=fsync 2>&1")
        written = shell(linux, "sha256sum < /dev/vda").split()[0]
        assert hashlib.sha256(image.read_bytes()).hexdigest() == written != digest
    await_gone(linux, "/dev/vda")
    assert image.stat().st_size % SECTOR == 0
