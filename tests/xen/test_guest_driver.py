"""The guest-driver tests of the local hypervisor on a real one: dom0 serves, a driver in the domU's user space drives."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.emulator.machines import Process
from tests.xen.domu import Domu, Kind

SECTOR = 512
MIB = 1 << 20


@pytest.fixture(scope="module", params=["pv", "pvh"])
def domu(request: pytest.FixtureRequest) -> Iterator[Domu]:
    kind: Kind = request.param
    with Domu(kind) as started:
        yield started


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(4 * MIB))
    return path


def test_rng(domu: Domu) -> None:
    emulator = Process("run", "--domid", str(domu.domid), "--device", "rng")
    try:
        emulator.await_line("device 0: ready")
        with domu.agent() as guest:
            assert guest("connect", dev=0)["device_id"] == 4
            assert len(guest("rng", dev=0, size=64)["data"]) == 128
    finally:
        print("\n".join(emulator.lines))
        assert emulator.stop() == 0


def test_blk(domu: Domu, image: Path) -> None:
    emulator = Process("run", "--domid", str(domu.domid), "--device", f"blk,path={image},serial=xen-1")
    try:
        emulator.await_line("device 0: ready")
        with domu.agent() as guest:
            found = guest("connect", dev=0)
            assert found["config"]["capacity"] == 4 * MIB // SECTOR
            assert guest("blk_sha256", dev=0)["sha256"] == hashlib.sha256(image.read_bytes()).hexdigest()
            data = os.urandom(64 * SECTOR)
            guest("blk_write", dev=0, sector=100, data=base64.b64encode(data).decode())
            guest("blk_flush", dev=0)
            assert base64.b64decode(guest("blk_read", dev=0, sector=100, count=64)["data"]) == data
            assert image.read_bytes()[100 * SECTOR : 164 * SECTOR] == data
            assert guest("config_race", dev=0, offset=32, values=["00", "01"], count=200)["stale"] == 0
    finally:
        print("\n".join(emulator.lines))
        assert emulator.stop() == 0
