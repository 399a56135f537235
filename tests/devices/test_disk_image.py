"""The file behind a disk: what may be opened, and by how many."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from devices import DeviceError, InUse
from devices.blk import Blk
from devices.disk_image import DiskImage


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4096))
    return path


@pytest.fixture
def held(path: Path) -> Iterator[DiskImage]:
    image = DiskImage(path, readonly=False)
    image.open()
    yield image
    image.close()


@pytest.mark.parametrize("readonly", [False, True])
def test_a_second_opener_of_a_written_image_is_refused(held: DiskImage, path: Path, readonly: bool) -> None:
    with pytest.raises(DeviceError, match=r"disk\.img is in use already; stop what uses it, or name another"):
        DiskImage(path, readonly=readonly).open()
    with pytest.raises(InUse, match="is in use already"):
        DiskImage(path, readonly=readonly).check()


def test_readers_share_and_keep_writers_out(path: Path) -> None:
    readers = [DiskImage(path, readonly=True) for _ in range(3)]
    for reader in readers:
        reader.open()
    for look in (DiskImage(path, readonly=False).check, DiskImage(path, readonly=False).open):
        with pytest.raises(InUse, match="is in use already"):
            look()
    DiskImage(path, readonly=True).check()
    for reader in readers:
        reader.close()
    writer = DiskImage(path, readonly=False)
    writer.open()
    writer.close()


def test_the_lock_goes_with_a_process_that_is_killed(path: Path) -> None:
    code = (
        "import sys, signal; from pathlib import Path; from devices.disk_image import DiskImage;"
        "DiskImage(Path(sys.argv[1]), readonly=False).open(); print('open', flush=True); signal.pause()"
    )
    image = DiskImage(path, readonly=False)
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        with pytest.raises(DeviceError, match="is in use"):
            image.open()
        process.kill()
    image.open()
    image.close()


def test_a_refused_image_is_not_left_open(held: DiskImage, path: Path) -> None:
    before = open_files()
    device = Blk(path=path)
    with pytest.raises(DeviceError):
        device.open()
    device.close()
    assert open_files() == before


def test_a_disk_that_cannot_have_its_size_is_not_left_open(path: Path) -> None:
    before = open_files()
    with pytest.raises(DeviceError, match="cannot grow"):
        Blk(path=path, readonly=True, size=8192).open()  # type: ignore[arg-type]
    assert open_files() == before


def test_an_image_that_somebody_only_looks_at_is_not_in_use(
    held: DiskImage, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: held.close())
    image = DiskImage(path, readonly=False)
    image.open()
    image.close()


def test_check_leaves_nothing_open_and_says_what_is_wrong(path: Path, tmp_path: Path) -> None:
    before = open_files()
    assert DiskImage(path, readonly=False).check(1 << 20) == 4096
    assert (path.stat().st_size, open_files()) == (4096, before)
    with pytest.raises(DeviceError, match="is read-only: it cannot grow to 8192"):
        DiskImage(path, readonly=True).check(8192)
    for wrong, message in [
        (tmp_path / "absent", "absent: no such file or directory"),
        (path / "below", "below: not a directory"),
        (tmp_path, "is neither a regular file nor a block device"),
        (Path("/dev/null"), "is neither a regular file nor a block device"),
    ]:
        for look in (DiskImage(wrong, readonly=True).check, DiskImage(wrong, readonly=True).open):
            with pytest.raises(DeviceError, match=message):
                look()


def test_a_fifo_is_refused_without_waiting_for_its_other_end(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for readonly in (False, True):
        image = DiskImage(fifo, readonly=readonly)
        for look in (image.check, image.open):
            with pytest.raises(DeviceError, match="is neither a regular file nor a block device"):
                look()


def test_a_file_without_permission_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = os.R_OK

    def access(_: object, mode: int, **__: object) -> bool:
        return mode & ~allowed == 0

    monkeypatch.setattr(os, "access", access)
    DiskImage(path, readonly=True).check()
    with pytest.raises(DeviceError, match="not allowed to write it; for a read-only disk say readonly=on"):
        DiskImage(path, readonly=False).check()


@pytest.mark.root
def test_a_block_device_is_a_disk(path: Path, tmp_path: Path) -> None:
    """A loop device, if this machine can make one."""
    found = subprocess.run(["losetup", "--find", "--show", str(path)], capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip(f"no loop device: {found.stderr.strip()}")
    loop = Path(found.stdout.strip())
    try:
        assert stat.S_ISBLK(loop.stat().st_mode)
        image = DiskImage(loop, readonly=False)
        image.check()
        image.open()
        try:
            assert image.size() == 4096
            image.write(memoryview(b"z" * 4096), 0)
            image.write_zeroes(512, 1024, unmap=True)
            image.write_zeroes(2048, 512, unmap=False)
            image.commit()
            view = memoryview(bytearray(4096))
            image.read([view], 0)
            assert bytes(view) == b"z" * 512 + bytes(1024) + b"z" * 512 + bytes(512) + b"z" * 1536
            with pytest.raises(DeviceError, match="is a block device: it cannot grow to 8192"):
                image.grow(8192)
        finally:
            image.close()
    finally:
        subprocess.run(["losetup", "--detach", str(loop)], check=True)


def test_the_end_of_a_closed_image_is_an_error_of_the_host(path: Path) -> None:
    with pytest.raises(DeviceError, match="bad file descriptor"):
        DiskImage(path, readonly=True).size()
