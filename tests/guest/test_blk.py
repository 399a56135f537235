"""The block driver against the emulator's block device: what was written is what is read, whatever happens between."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cpp_ring.store import Store
from guest.blk import CONFIG_WCE, DISCARD, FLUSH, WRITE_ZEROES, BlockDevice, Operation
from guest.device import bits
from guest.errors import DeviceGone, RequestFailed, Unsupported
from guest.hypervisor import Domain, open_local
from tests.guest.conftest import Emulator, StartEmulator

SECTORS = 16384
Toolstack = Callable[..., None]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(1).randbytes(SECTORS * 512))
    return path


@pytest.fixture(scope="module")
def served(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Domain, Path]]:
    """Domain 3 and the image that an emulator serves to it, for the tests that do no harm to either."""
    path = tmp_path_factory.mktemp("served") / "disk.img"
    path.write_bytes(random.Random(1).randbytes(SECTORS * 512))
    process = Emulator(3, (f"blk,path={path},serial=disk-1",))
    with Store.open(directory / "dom0" / "xenstored") as store:
        process.await_devices(store)
        yield open_local(directory, 3), path
        process.stop()


@pytest.fixture
def disk(served: tuple[Domain, Path]) -> Iterator[BlockDevice]:
    with BlockDevice(served[0], 0) as device:
        yield device


@pytest.fixture
def content(served: tuple[Domain, Path]) -> Path:
    """The image behind `disk`."""
    return served[1]


def test_the_whole_image_is_read_as_it_is(disk: BlockDevice, content: Path) -> None:
    assert disk.capacity == SECTORS
    assert disk.read(0, SECTORS) == content.read_bytes()


@pytest.mark.parametrize(("sector", "count"), [(0, 1), (1, 7), (255, 258), (3, 4096), (SECTORS - 1, 1), (5, 0)])
def test_any_range_is_written_and_read_back(disk: BlockDevice, content: Path, sector: int, count: int) -> None:
    expected = bytearray(content.read_bytes())
    data = random.Random(2).randbytes(count * 512)
    disk.write(sector, data)
    disk.flush()
    expected[sector * 512 : (sector + count) * 512] = data
    assert disk.read(sector, count) == data
    assert content.read_bytes() == expected


def test_parts_of_sectors_are_refused(disk: BlockDevice) -> None:
    with pytest.raises(ValueError, match="511 bytes"):
        disk.write(0, bytes(511))


def test_many_requests_in_flight_finish_in_any_order(disk: BlockDevice, content: Path) -> None:
    expected = content.read_bytes()
    requests = [disk.submit(Operation.IN, 8 * i, size=4096) for i in range(64)]
    random.Random(3).shuffle(requests)
    for request in requests:
        assert request is not None
        assert disk.finish(request) == expected[request.sector * 512 : request.sector * 512 + 4096]


def test_a_full_arena_is_told_and_not_an_error(disk: BlockDevice) -> None:
    requests = []
    while (request := disk.submit(Operation.IN, 0, size=128 * 1024)) is not None:
        requests.append(request)
    assert len(requests) >= 8
    with pytest.raises(RequestFailed, match="arena"):
        disk.read(0, 4096)
    for request in requests:
        assert len(disk.finish(request)) == 128 * 1024
    assert len(disk.read(0, 4096)) == 4096 * 512
    with pytest.raises(ValueError, match="one request"):
        disk.submit(Operation.IN, 0, size=1 << 30)


def test_requests_past_the_end_fail_and_leave_nothing_behind(disk: BlockDevice) -> None:
    for _ in range(3):
        with pytest.raises(RequestFailed, match=f"IN at sector {SECTORS}"):
            disk.read(SECTORS, 1)
        with pytest.raises(RequestFailed):
            disk.read(SECTORS - 300, 512)
        with pytest.raises(RequestFailed):
            disk.write(SECTORS, bytes(512))
    request = disk.submit(99)
    assert request is not None
    with pytest.raises(Unsupported, match="request 99"):
        disk.finish(request)
    assert disk.transport.arena is not None
    assert disk.transport.arena.free_bytes == disk.transport.arena.pages * 4096


def test_discard_and_write_zeroes_leave_zeroes(disk: BlockDevice) -> None:
    disk.write_zeroes(100, 50)
    assert disk.read(100, 50) == bytes(50 * 512)
    disk.write_zeroes(200, 48, unmap=True)
    assert disk.read(200, 48) == bytes(48 * 512)
    disk.discard(1024, 1024)
    assert len(disk.read(1024, 1024)) == 1024 * 512


def test_the_id_is_the_serial(disk: BlockDevice) -> None:
    assert disk.get_id() == "disk-1"


def test_the_write_cache_is_switched(disk: BlockDevice, content: Path) -> None:
    assert disk.config["writeback"] == 1
    disk.set_writeback(False)
    assert disk.config["writeback"] == 0
    disk.write(0, b"x" * 512)
    assert content.read_bytes()[:512] == b"x" * 512


def test_what_was_not_negotiated_is_not_used(domain: Domain, emulator: StartEmulator, image: Path) -> None:
    emulator(f"blk,path={image}")
    with BlockDevice(domain, 0, refuse=bits(DISCARD, WRITE_ZEROES, CONFIG_WCE, FLUSH)) as disk:
        disk.flush()
        calls: list[Callable[[], object]] = [
            lambda: disk.discard(0, 8),
            lambda: disk.write_zeroes(0, 8),
            lambda: disk.set_writeback(True),
        ]
        for call in calls:
            with pytest.raises(Unsupported):
                call()
        assert "max_discard_sectors" not in disk.config


def test_a_read_only_disk_refuses_writes(domain: Domain, emulator: StartEmulator, image: Path) -> None:
    emulator(f"blk,path={image},readonly=on")
    with BlockDevice(domain, 0) as disk:
        assert disk.read_only
        with pytest.raises(RequestFailed):
            disk.write(0, bytes(512))
        assert disk.read(0, 16) == image.read_bytes()[: 16 * 512]


def test_a_resize_is_seen(domain: Domain, emulator: StartEmulator, image: Path, toolstack: Toolstack) -> None:
    emulator(f"blk,path={image}")
    disk = BlockDevice(domain, 0)
    with image.open("r+b") as file:
        file.truncate(2 * SECTORS * 512)
    toolstack("update", "1", "0")
    assert disk.wait_config_change(20.0)
    assert disk.capacity == 2 * SECTORS
    assert disk.read(2 * SECTORS - 1, 1) == bytes(512)
    disk.close()


def test_what_was_flushed_survives_kill_9(domain: Domain, emulator: StartEmulator, image: Path) -> None:
    spec = f"blk,path={image}"
    first = emulator(spec)
    with BlockDevice(domain, 0) as disk:
        data = random.Random(4).randbytes(300 * 512)
        disk.write(7, data)
        disk.flush()
        first.kill()
        emulator(spec)
        assert disk.read(7, 300) == data


def test_requests_that_were_with_a_killed_emulator_are_done_by_the_next(
    domain: Domain, emulator: StartEmulator, image: Path
) -> None:
    spec = f"blk,path={image}"
    first = emulator(spec)
    with BlockDevice(domain, 0) as disk:
        first.freeze()
        data = [bytes([i]) * 4096 for i in range(20)]
        requests = [disk.submit(Operation.OUT, 8 * i, data=piece) for i, piece in enumerate(data)]
        flush = disk.submit(Operation.FLUSH)
        first.kill()
        emulator(spec)
        for request in [*requests, flush]:
            assert request is not None
            disk.finish(request)
        assert disk.read(0, 160) == b"".join(data)
    assert image.read_bytes()[: 160 * 512] == b"".join(data)


def test_restarts_in_the_middle_of_a_long_write_lose_nothing(
    domain: Domain, emulator: StartEmulator, image: Path
) -> None:
    spec = f"blk,path={image}"
    with_data = random.Random(5)
    expected = bytearray(image.read_bytes())
    process = emulator(spec)
    with BlockDevice(domain, 0) as disk:
        for _ in range(3):
            for _ in range(20):
                sector, count = with_data.randrange(SECTORS - 600), with_data.randrange(1, 600)
                data = with_data.randbytes(count * 512)
                disk.write(sector, data)
                expected[sector * 512 : (sector + count) * 512] = data
            process.kill()
            process = emulator(spec)
        assert disk.read(0, SECTORS) == expected


def read_for_ever(disk: BlockDevice) -> None:
    while True:
        disk.read(0, 64)


def test_an_unplugged_disk_is_gone(domain: Domain, emulator: StartEmulator, image: Path, toolstack: Toolstack) -> None:
    emulator(f"blk,path={image}")
    disk = BlockDevice(domain, 0)
    disk.read(0, 1)
    detach = threading.Thread(target=toolstack, args=("detach", "1", "0"))
    detach.start()
    with pytest.raises(DeviceGone):
        read_for_ever(disk)
    detach.join()
    disk.close()


def test_a_driver_that_comes_before_its_emulator_waits_for_it(
    domain: Domain, emulator: StartEmulator, image: Path, toolstack: Toolstack
) -> None:
    toolstack("attach", "1", f"blk,path={image}")
    emulator()
    with BlockDevice(domain, 0) as disk:
        assert disk.capacity == SECTORS


def test_one_driver_after_the_other_finds_the_device(domain: Domain, emulator: StartEmulator, image: Path) -> None:
    emulator(f"blk,path={image}")
    for i in range(5):
        with BlockDevice(domain, 0) as disk:
            disk.write(i, bytes([i]) * 512)
    with BlockDevice(domain, 0) as disk:
        assert disk.read(0, 5) == b"".join(bytes([i]) * 512 for i in range(5))


def test_several_queues_are_all_of_use(domain: Domain, emulator: StartEmulator, image: Path) -> None:
    emulator(f"blk,path={image},queues=2")
    with BlockDevice(domain, 0) as disk:
        for queue in range(len(disk.queues)):
            request = disk.submit(Operation.IN, 0, size=512, queue=queue)
            assert request is not None
            assert disk.finish(request) == image.read_bytes()[:512]
