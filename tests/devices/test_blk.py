"""virtio-blk: requests, limits, configuration, cache modes, size."""

import errno
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devices import DeviceError, RequestError, disk_image
from devices.blk import (
    F_CONFIG_WCE,
    F_DISCARD,
    F_FLUSH,
    F_MQ,
    F_RO,
    F_WRITE_ZEROES,
    MAX_DISCARD_SECTORS,
    MAX_DISCARD_SEGMENTS,
    MAX_WRITE_ZEROES_SECTORS,
    Blk,
)
from devices.disk_image import DiskImage
from devices.features import mask
from devices.options import Size, build
from tests.devices.blk_requests import (
    DISCARD,
    FLUSH,
    GET_ID,
    GET_LIFETIME,
    IN,
    IOERR,
    OK,
    OUT,
    SECURE_ERASE,
    UNSUPP,
    WRITE_ZEROES,
    BlkDriver,
    header,
    make_image,
    segment,
)

SECTORS = 64
WRITEBACK = 32  # offset of the field

Make = Callable[..., BlkDriver]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    make_image(path, SECTORS)
    return path


@pytest.fixture
def make(image: Path) -> Iterator[Make]:
    drivers: list[BlkDriver] = []

    def maker(features: int | None = None, **options: object) -> BlkDriver:
        drivers.append(BlkDriver(Blk(path=image, **options), features))  # type: ignore[arg-type]
        return drivers[-1]

    yield maker
    for driver in drivers:
        driver.reset()
        driver.blk.close()


# ---- Reading and writing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [(), (1,), (511, 1), (512,), (100, 200, 300)])
def test_reads_fill_the_drivers_buffers_in_order(make: Make, image: Path, split: tuple[int, ...]) -> None:
    assert make().read(3, 2048, split) == (OK, image.read_bytes()[3 * 512 : 3 * 512 + 2048])


@pytest.mark.parametrize("sectors", [1, 7, SECTORS])
def test_writes_reach_the_file(make: Make, image: Path, sectors: int) -> None:
    driver = make()
    data = os.urandom(sectors * 512)
    assert driver.write(0, data) == OK
    assert image.read_bytes()[: len(data)] == data
    assert driver.read(0, len(data)) == (OK, data)


def test_requests_of_every_queue_are_served(make: Make, image: Path) -> None:
    driver = make(queues=3)
    for queue in range(3):
        assert driver.write(queue, bytes([queue]) * 512, queue) == OK
    assert image.read_bytes()[:1536] == b"\0" * 512 + b"\1" * 512 + b"\2" * 512


@pytest.mark.parametrize("sector", [0, 1, SECTORS - 1, SECTORS, SECTORS + 1, (1 << 63), (1 << 64) - 1, (1 << 64) - 2])
@pytest.mark.parametrize("sectors", [1, 2, SECTORS, SECTORS + 1])
def test_nothing_is_read_or_written_beyond_capacity(make: Make, image: Path, sector: int, sectors: int) -> None:
    driver = make()
    before = image.read_bytes()
    inside = sector + sectors <= SECTORS
    status, data = driver.read(sector, sectors * 512)
    assert (status, data) == (
        (OK, before[sector * 512 :][: sectors * 512]) if inside else (IOERR, bytes(sectors * 512))
    )
    if not inside:
        assert driver.write(sector, b"!" * sectors * 512) == IOERR
        assert image.read_bytes() == before


@pytest.mark.parametrize("size", [1, 511, 513, 1000])
def test_sizes_that_are_no_sectors_are_refused(make: Make, image: Path, size: int) -> None:
    driver = make()
    before = image.read_bytes()
    assert driver.read(0, size) == (IOERR, bytes(size))
    assert driver.write(0, b"!" * size) == IOERR
    assert image.read_bytes() == before


def test_an_empty_transfer_is_no_error(make: Make) -> None:
    driver = make()
    assert driver.read(0, 0) == (OK, b"")
    assert driver.write(SECTORS, b"") == OK


def test_data_in_the_wrong_direction_is_refused(make: Make, image: Path) -> None:
    driver = make()
    before = image.read_bytes()
    assert driver.send(0, header(IN) + bytes(512), [512, 1]) == bytes(512) + bytes([IOERR])
    assert driver.send(0, header(OUT) + b"!" * 512, [512, 1]) == bytes(512) + bytes([IOERR])
    assert image.read_bytes() == before


@pytest.mark.parametrize(
    ("readable", "writable"), [(b"", [1]), (bytes(15), [513]), (header(IN), []), (header(OUT), [])]
)
def test_a_request_without_header_or_status_is_no_request(make: Make, readable: bytes, writable: list[int]) -> None:
    with pytest.raises(RequestError, match="no header of 16 bytes, or no status byte"):
        make().submit(0, readable, writable)


@pytest.mark.parametrize("kind", [2, 3, 5, 6, 7, 9, GET_LIFETIME, 12, SECURE_ERASE, 15, 16, 26, 0xFFFFFFFF])
def test_unknown_types_are_unsupported(make: Make, kind: int) -> None:
    driver = make()
    assert driver.command(kind) == UNSUPP
    assert driver.send(0, header(kind), [20, 1]) == bytes(20) + bytes([UNSUPP])


# ---- GET_ID -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("serial", ["", "disk-7", "12345678901234567890"])
def test_the_id_is_padded_with_zeroes(make: Make, serial: str) -> None:
    assert make(serial=serial).send(0, header(GET_ID), [20, 1]) == serial.encode().ljust(20, b"\0") + b"\0"


@pytest.mark.parametrize("size", [0, 4, 64])
def test_an_id_buffer_of_another_size_gets_what_fits(make: Make, size: int) -> None:
    answer = make(serial="serial-number").send(0, header(GET_ID), [size, 1])
    assert answer == b"serial-number".ljust(64, b"\0")[:size] + bytes([OK])


# ---- DISCARD and WRITE_ZEROES -----------------------------------------------------------------------------------


def test_discard_gives_space_back(make: Make, image: Path) -> None:
    driver = make()
    before = image.read_bytes()
    assert driver.command(DISCARD, segment(8, 16) + segment(40, 8)) == OK
    after = image.read_bytes()
    assert (
        after == before[: 8 * 512] + bytes(16 * 512) + before[24 * 512 : 40 * 512] + bytes(8 * 512) + before[48 * 512 :]
    )
    assert image.stat().st_size == SECTORS * 512


@pytest.mark.parametrize("flags", [0, 1])
def test_write_zeroes_reads_back_as_zeroes(make: Make, image: Path, flags: int) -> None:
    driver = make()
    before = image.read_bytes()
    assert driver.command(WRITE_ZEROES, segment(3, 9, flags)) == OK
    assert image.read_bytes() == before[: 3 * 512] + bytes(9 * 512) + before[12 * 512 :]


@pytest.mark.parametrize("flags", [0, 1])
@pytest.mark.parametrize("refusal", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_without_fallocate_zeroes_are_written_and_discard_is_only_advice(
    make: Make, image: Path, monkeypatch: pytest.MonkeyPatch, flags: int, refusal: int
) -> None:
    monkeypatch.setattr("devices.disk_image._libc_fallocate", lambda: lambda *_: refusal)
    monkeypatch.setattr("devices.disk_image.ZEROES", bytes(1000))  # several chunks, the last one short
    driver = make()
    before = image.read_bytes()
    assert driver.command(DISCARD, segment(0, 8)) == OK
    assert image.read_bytes() == before
    assert driver.command(WRITE_ZEROES, segment(3, 9, flags)) == OK
    assert image.read_bytes() == before[: 3 * 512] + bytes(9 * 512) + before[12 * 512 :]


def test_an_interrupted_fallocate_is_repeated_and_a_failed_one_is_an_error(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [errno.EINTR, 0, errno.ENOSPC]
    monkeypatch.setattr("devices.disk_image._libc_fallocate", lambda: lambda *_: answers.pop(0))
    driver = make()
    assert driver.command(DISCARD, segment(0, 8)) == OK
    assert driver.command(DISCARD, segment(0, 8)) == IOERR


def test_discard_off_never_deallocates(make: Make, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = make(discard=False)
    assert not driver.features & mask(F_DISCARD)
    assert driver.blk.config.write_zeroes_may_unmap == 0

    def refuse(*_: object) -> bool:
        raise AssertionError("deallocated")

    monkeypatch.setattr(DiskImage, "discard", refuse)
    assert driver.command(WRITE_ZEROES, segment(0, 8, 1)) == OK
    assert image.read_bytes()[: 8 * 512] == bytes(8 * 512)


@pytest.mark.parametrize("kind", [DISCARD, WRITE_ZEROES])
@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", IOERR),
        (segment(0, 1)[:-1], IOERR),
        (segment(0, 1) + b"x", IOERR),
        (segment(SECTORS - 1, 2), IOERR),
        (segment(SECTORS + 1, 0), IOERR),
        (segment((1 << 64) - 1, 1), IOERR),
        (segment(0, MAX_DISCARD_SECTORS + 1), IOERR),
        (segment(0, 0xFFFFFFFF), IOERR),
        (segment(0, 1) * (MAX_DISCARD_SEGMENTS + 1), IOERR),
        (segment(0, 1, 2), UNSUPP),
        (segment(0, 1, 1 << 31), UNSUPP),
        (segment(SECTORS, 0), OK),
    ],
)
def test_segments_are_checked_before_anything_is_done(
    make: Make, image: Path, kind: int, data: bytes, status: int
) -> None:
    before = image.read_bytes()
    assert make().command(kind, data) == status
    assert image.read_bytes() == before


def test_one_bad_segment_spares_the_others(make: Make, image: Path) -> None:
    before = image.read_bytes()
    assert make().command(DISCARD, segment(0, 8) + segment(SECTORS, 1)) == IOERR
    assert image.read_bytes() == before


def test_discard_takes_no_unmap_flag(make: Make, image: Path) -> None:
    before = image.read_bytes()
    assert make().command(DISCARD, segment(0, 8, 1)) == UNSUPP
    assert image.read_bytes() == before


def test_the_zeroes_of_one_request_are_bounded(make: Make) -> None:
    driver = make(size=Size(1 << 30))
    assert driver.command(WRITE_ZEROES, segment(0, MAX_WRITE_ZEROES_SECTORS + 1)) == IOERR
    assert driver.command(WRITE_ZEROES, segment(0, MAX_WRITE_ZEROES_SECTORS)) == OK


# ---- Features ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "bit", "data"),
    [(DISCARD, F_DISCARD, segment(0, 8)), (WRITE_ZEROES, F_WRITE_ZEROES, segment(0, 8)), (FLUSH, F_FLUSH, b"")],
)
def test_commands_that_were_not_negotiated_are_unsupported(make: Make, kind: int, bit: int, data: bytes) -> None:
    driver = make()
    driver.reset()
    driver.start(driver.blk.features & ~mask(bit))
    assert driver.command(kind, data) == UNSUPP


def test_a_read_only_disk_refuses_every_change(make: Make, image: Path) -> None:
    image.chmod(0o444)
    driver = make(readonly=True)
    before = image.read_bytes()
    assert driver.features & mask(F_RO, F_DISCARD, F_WRITE_ZEROES) == mask(F_RO)
    assert driver.write(0, b"!" * 512) == IOERR
    assert driver.command(DISCARD, segment(0, 8)) == UNSUPP
    assert driver.command(WRITE_ZEROES, segment(0, 8)) == UNSUPP
    assert driver.flush() == OK
    assert driver.read(0, 512) == (OK, before[:512])
    assert image.read_bytes() == before


def test_a_read_only_disk_refuses_writes_though_the_driver_ignores_the_feature(make: Make, image: Path) -> None:
    before = image.read_bytes()
    driver = make(readonly=True, features=0)
    assert driver.write(0, b"!" * 512) == IOERR
    assert image.read_bytes() == before


def test_queues_beyond_the_first_exist_with_multi_queue_only(make: Make) -> None:
    device = make(queues=4).blk
    assert device.config.num_queues == 4
    assert [queue is not None for queue in device.queues_for(mask(F_MQ))] == [True] * 4
    assert [queue is not None for queue in device.queues_for(0)] == [True, False, False, False]
    assert not Blk(path=Path("disk.img")).features & mask(F_MQ)


def test_limits_are_in_the_configuration_space() -> None:
    config = Blk(path=Path("x"), block_size=1024).config
    assert (config.blk_size, config.seg_max, config.writeback) == (1024, 254, 1)
    assert (config.topology_physical_block_exp, config.topology_min_io_size) == (2, 4)
    assert (config.max_discard_sectors, config.max_discard_seg) == (MAX_DISCARD_SECTORS, MAX_DISCARD_SEGMENTS)
    assert (config.max_write_zeroes_sectors, config.max_write_zeroes_seg) == (MAX_WRITE_ZEROES_SECTORS, 1)
    assert config.write_zeroes_may_unmap == 1
    assert config.size == 60


# ---- Size -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "block_size", "capacity"),
    [(512, 512, 1), (1000, 512, 1), (8192 + 512, 4096, 16), (8191, 4096, 8)],
)
def test_the_disk_ends_at_the_last_whole_block(
    image: Path,
    make: Make,
    size: int,
    block_size: int,
    capacity: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    image.write_bytes(b"x" * size)
    driver = make(block_size=block_size)
    assert driver.blk.config.capacity == capacity
    assert driver.write(capacity, b"!" * 512) == IOERR
    assert image.read_bytes() == b"x" * size
    told = f"does not see its last {size % block_size} bytes, which are no whole block of {block_size}" in caplog.text
    assert told == (size % block_size != 0)


@pytest.mark.parametrize(("size", "block_size"), [(0, 512), (511, 512), (4095, 4096)])
def test_a_file_without_a_block_is_no_disk(image: Path, size: int, block_size: int) -> None:
    image.write_bytes(b"x" * size)
    device = Blk(path=image, block_size=block_size)  # type: ignore[arg-type]
    for look in (device.check, device.open):
        with pytest.raises(DeviceError, match=f"has {size} bytes, not one block of {block_size}; size="):
            look()
    Blk(path=image, size=Size(4096)).check()


def test_a_file_cut_to_nothing_does_not_take_the_disk_away(make: Make, image: Path) -> None:
    driver = make()
    os.truncate(image, 0)
    with pytest.raises(DeviceError, match="has 0 bytes, not one block of 512"):
        driver.blk.update()
    assert (driver.blk.config.capacity, driver.config_changes) == (SECTORS, 0)


def test_a_given_size_extends_a_short_file(make: Make, image: Path) -> None:
    before = image.read_bytes()
    driver = make(size=Size(1 << 20))
    assert driver.blk.config.capacity == 2048
    assert image.read_bytes() == before.ljust(1 << 20, b"\0")


def test_a_given_size_hides_the_rest_of_a_long_file(make: Make, image: Path) -> None:
    before = image.read_bytes()
    driver = make(size=Size(4096))
    assert driver.blk.config.capacity == 8
    assert driver.write(8, b"!" * 512) == IOERR
    assert image.read_bytes() == before


def test_live_resize_is_told_to_the_driver(make: Make, image: Path) -> None:
    driver = make()
    device = driver.blk
    device.update(size=Size(1 << 20))
    assert (device.config.capacity, driver.config_changes) == (2048, 1)
    assert driver.write(2047, b"z" * 512) == OK
    device.update(size=Size(1 << 20))
    assert driver.config_changes == 1, "a size that stays is no change"
    device.update(size=Size(4096))
    assert (device.config.capacity, driver.config_changes) == (8, 2)
    assert image.stat().st_size == 1 << 20, "a smaller disk must not cut the file"
    assert driver.write(7, b"y" * 512) == OK
    assert driver.write(8, b"z" * 512) == IOERR
    assert driver.read(2047, 512)[0] == IOERR
    device.update()
    assert driver.read(2047, 512) == (OK, b"z" * 512)
    assert (device.config.capacity, driver.config_changes) == (2048, 3)


def test_a_file_that_grew_is_seen_by_update(make: Make, image: Path) -> None:
    driver = make()
    os.truncate(image, SECTORS * 1024)
    driver.blk.update()
    assert driver.blk.config.capacity == 2 * SECTORS


def test_a_file_that_was_cut_behind_our_back_gives_errors(make: Make, image: Path) -> None:
    driver = make()
    os.truncate(image, 700)
    assert driver.read(0, 512)[0] == OK
    assert driver.read(1, 512) == (IOERR, bytes(512))
    assert driver.read(0, 2048, (500,)) == (IOERR, bytes(2048))


def test_a_read_only_disk_cannot_grow(make: Make, image: Path) -> None:
    driver = make(readonly=True)
    with pytest.raises(DeviceError, match="is read-only: it cannot grow to 1048576"):
        driver.blk.update(size=Size(1 << 20))
    assert driver.blk.config.capacity == SECTORS


def test_a_size_the_file_system_refuses(make: Make) -> None:
    driver = make()
    with pytest.raises(DeviceError, match=f"cannot grow to {(1 << 63) - 512} bytes: "):
        driver.blk.update(size=Size((1 << 63) - 512))


@pytest.mark.parametrize(
    ("size", "block_size"), [(0, 512), (-512, 512), (1 << 63, 512), (100, 512), (1000, 512), (512, 4096)]
)
def test_sizes_that_are_no_whole_blocks_are_refused(make: Make, image: Path, size: int, block_size: int) -> None:
    complaint = f"size={size} is no multiple of {block_size} from {block_size} to"
    with pytest.raises(ValueError, match=complaint):
        Blk(path=Path("x"), size=Size(size), block_size=block_size)  # type: ignore[arg-type]
    driver = make(block_size=block_size)
    with pytest.raises(ValueError, match=complaint):
        driver.blk.update(size=Size(size))
    assert (driver.blk.config.capacity, driver.config_changes) == (SECTORS, 0)
    assert image.stat().st_size == SECTORS * 512


# ---- Options ----------------------------------------------------------------------------------------------------


def test_options_as_text(image: Path) -> None:
    text = {"path": str(image), "readonly": "off", "serial": "s", "size": "64K", "block_size": "4096", "queues": "2"}
    device = build(Blk, text)
    assert device.config.blk_size == 4096
    assert len(device.queues) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"serial": "123456789012345678901"}, "blk: serial=123456789012345678901 has 21 characters; 20 are allowed"),
        ({"serial": "\u00e4"}, "blk: serial=\u00e4 has characters that are not ASCII"),
        ({"queues": "0"}, "blk: queues=0 is not from 1 to 64"),
        ({"queues": "65"}, "blk: queues=65 is not from 1 to 64"),
        ({"block_size": "513"}, "blk: block_size=513: expected one of 512, 1024, 2048, 4096"),
    ],
)
def test_wrong_options(options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(Blk, {"path": "x", **options})


# ---- Errors of the host -----------------------------------------------------------------------------------------


def fail(code: int) -> Callable[..., int]:
    def call(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    return call


def test_a_failed_read_leaves_zeroes_and_an_error(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = make()
    monkeypatch.setattr(os, "preadv", fail(errno.EIO))
    assert driver.read(0, 1024, (100,)) == (IOERR, bytes(1024))


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_failed_write_is_an_error(make: Make, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    driver = make()
    monkeypatch.setattr(os, "pwrite", fail(code))
    assert driver.write(0, bytes(512)) == IOERR


def test_a_file_that_takes_nothing_is_an_error_and_no_endless_loop(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = make()
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    assert driver.write(0, bytes(512)) == IOERR


def test_host_errors_are_logged_but_do_not_flood_the_log(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    driver = make()
    monkeypatch.setattr(os, "preadv", fail(errno.EIO))
    with caplog.at_level(logging.ERROR):
        for _ in range(1000):
            driver.read(5, 512)
    assert len(caplog.records) == 1
    assert "request type 0 at sector 5 failed" in caplog.text


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.integers(1, 700), max_size=40), size=st.integers(0, 8).map(lambda n: n * 512))
def test_short_transfers_are_continued(image: Path, steps: list[int], size: int) -> None:
    """The kernel may transfer less than asked; every byte arrives all the same, at its place."""
    preadv, pwrite = os.preadv, os.pwrite
    left = iter(steps)

    def shortened(views: list[memoryview]) -> list[memoryview]:
        assert len(views) <= disk_image.MAX_VIEWS
        whole = sum(map(len, views))
        room, kept = next(left, whole), []
        for view in views:
            kept.append(view[:room])
            room -= len(kept[-1])
        return kept

    def short_read(fd: int, views: list[memoryview], offset: int) -> int:
        return preadv(fd, shortened(views), offset)

    def short_write(fd: int, data: memoryview, offset: int) -> int:
        return pwrite(fd, data[: next(left, len(data))], offset)

    make_image(image, SECTORS)
    driver = BlkDriver(Blk(path=image))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "preadv", short_read)
            patch.setattr(os, "pwrite", short_write)
            patch.setattr(disk_image, "MAX_VIEWS", 3)
            split = (size // 3, size // 5, size // 7, size // 11) if size else ()
            assert driver.read(7, size, split) == (OK, image.read_bytes()[7 * 512 :][:size])
            data = os.urandom(size)
            assert driver.write(9, data) == OK
        assert image.read_bytes()[9 * 512 :][:size] == data
    finally:
        driver.blk.close()


# ---- Cache mode -------------------------------------------------------------------------------------------------


def test_the_cache_mode_is_the_drivers_choice_within_its_features(make: Make) -> None:
    driver = make()
    device = driver.blk
    assert device.config_write(WRITEBACK, b"\0")
    assert driver.read_config(WRITEBACK, 1) == b"\0"
    assert device.config_write(WRITEBACK, b"\1")
    assert not device.config_write(WRITEBACK, b"\2")
    assert driver.read_config(WRITEBACK, 1) == b"\1"


@pytest.mark.parametrize("features", [mask(F_FLUSH), 0])
def test_without_config_wce_the_mode_is_fixed(make: Make, features: int) -> None:
    assert not make(features).blk.config_write(WRITEBACK, b"\0")


def test_without_flush_the_disk_stays_write_through(make: Make) -> None:
    driver = make(mask(F_CONFIG_WCE))
    assert driver.read_config(WRITEBACK, 1) == b"\0"
    assert not driver.blk.config_write(WRITEBACK, b"\1")
    assert driver.blk.config_write(WRITEBACK, b"\0")


def test_reset_forgets_the_mode(make: Make) -> None:
    driver = make()
    assert driver.blk.config_write(WRITEBACK, b"\0")
    driver.reset()
    assert driver.read_config(WRITEBACK, 1) == b"\1"
    assert not driver.blk.config_write(WRITEBACK, b"\0"), "no features, no choice"
