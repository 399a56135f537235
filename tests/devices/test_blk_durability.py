"""virtio-blk, "no data lost": what is on stable storage when, and what a failed fdatasync means."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from devices.blk import F_CONFIG_WCE, F_FLUSH, Blk
from devices.features import mask
from tests.devices.blk_requests import IOERR, OK, WRITE_ZEROES, BlkDriver, make_image, segment

WRITEBACK = 32


class Storage:
    """os.pwrite and os.fdatasync, recorded in order; fdatasync fails while `broken`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.broken = False
        pwrite, fdatasync = os.pwrite, os.fdatasync

        def write(fd: int, data: memoryview, offset: int) -> int:
            self.calls.append("write")
            return pwrite(fd, data, offset)

        def sync(fd: int) -> None:
            self.calls.append("sync")
            if self.broken:
                raise OSError(errno.EIO, "injected")
            fdatasync(fd)

        monkeypatch.setattr(os, "pwrite", write)
        monkeypatch.setattr(os, "fdatasync", sync)


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Storage:
    return Storage(monkeypatch)


@pytest.fixture
def driver(tmp_path: Path, storage: Storage) -> Iterator[BlkDriver]:
    make_image(tmp_path / "disk.img")
    driver = BlkDriver(Blk(path=tmp_path / "disk.img"))
    yield driver
    driver.blk.close()


def restart(driver: BlkDriver, features: int) -> None:
    driver.reset()
    driver.start(features)


def test_a_write_back_write_is_not_synced_and_a_flush_is(driver: BlkDriver, storage: Storage) -> None:
    assert driver.write(0, bytes(512)) == OK
    assert storage.calls == ["write"]
    assert driver.flush() == OK
    assert storage.calls == ["write", "sync"]


@pytest.mark.parametrize("features", [0, mask(F_CONFIG_WCE)])
def test_without_flush_each_write_is_stable_when_it_completes(
    driver: BlkDriver, storage: Storage, features: int
) -> None:
    restart(driver, features)
    assert driver.write(0, bytes(512)) == OK
    assert storage.calls == ["write", "sync"]


def test_with_writeback_off_each_write_is_stable_when_it_completes(driver: BlkDriver, storage: Storage) -> None:
    assert driver.blk.config_write(WRITEBACK, b"\0")
    assert driver.write(0, bytes(512)) == OK
    assert storage.calls == ["write", "sync"]
    assert driver.command(WRITE_ZEROES, segment(0, 1)) == OK
    assert storage.calls[-1] == "sync"
    assert driver.blk.config_write(WRITEBACK, b"\1")
    assert driver.write(0, bytes(512)) == OK
    assert storage.calls[-1] == "write"


def test_after_a_failed_flush_every_flush_fails_until_reset(driver: BlkDriver, storage: Storage) -> None:
    assert driver.write(0, bytes(512)) == OK
    storage.broken = True
    assert driver.flush() == IOERR
    storage.broken = False
    assert [driver.flush() for _ in range(3)] == [IOERR] * 3
    assert storage.calls.count("sync") == 1, "a success now would not cover what was lost before"
    assert driver.read(0, 512) == (OK, bytes(512)), "reading goes on"
    restart(driver, driver.blk.features)
    assert driver.flush() == OK


def test_a_failed_write_through_write_fails_later_ones_and_flushes(driver: BlkDriver, storage: Storage) -> None:
    assert driver.blk.config_write(WRITEBACK, b"\0")
    storage.broken = True
    assert driver.write(0, bytes(512)) == IOERR
    storage.broken = False
    assert driver.write(0, bytes(512)) == IOERR
    assert driver.flush() == IOERR
    restart(driver, mask(F_FLUSH))
    assert driver.write(0, bytes(512)) == OK
    assert driver.flush() == OK


def test_nothing_is_in_flight_when_a_handler_returns(driver: BlkDriver) -> None:
    """A reset that comes between two requests cannot be followed by a write of the first one."""
    buffers = driver.submit(0, b"\x01" + bytes(15) + b"w" * 512, [1])
    assert buffers.done
