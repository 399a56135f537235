"""Threat 9: direction lies. A header the device may write, a status it may only read, data on the wrong side.

The engine refuses chains whose writable part comes before the readable one; what is left for the model is a request
whose parts are on the wrong side, and here they are: every type with every split of its bytes.
"""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from devices import RequestError
from devices.blk import Blk
from tests.devices.blk_requests import BlkDriver, header, make_image, segment

TYPES = [0, 1, 4, 8, 10, 11, 13, 14, 16, 0xFFFFFFFF]
PAYLOADS = [b"", segment(0, 1), bytes(512), bytes(1024)]
HEADERS = [0, 1, 8, 15, 16]  # readable bytes of the header; the rest of it would be writable
WRITABLE = [(), (1,), (16, 1), (512,), (512, 1), (1, 512), (20, 1), (16, 512, 1)]


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[BlkDriver]:
    make_image(tmp_path / "disk.img")
    driver = BlkDriver(Blk(path=tmp_path / "disk.img"))
    yield driver
    driver.blk.close()


def may_change(kind: int, payload: bytes, writable: tuple[int, ...]) -> bool:
    """A write with nothing but the status byte to be written, or a command on segments: the only ones that change."""
    if kind == 1:
        return writable == (1,) and len(payload) % 512 == 0
    return kind in (11, 13) and len(payload) == 16


@pytest.mark.parametrize("kind", TYPES)
def test_parts_on_the_wrong_side_end_in_an_error_and_change_no_data(
    driver: BlkDriver, tmp_path: Path, kind: int
) -> None:
    image = tmp_path / "disk.img"
    before = image.read_bytes()
    for given, payload, writable in product(HEADERS, PAYLOADS, WRITABLE):
        readable = header(kind)[:given] + (payload if given == 16 else b"")
        if given < 16 or not writable:
            with pytest.raises(RequestError):
                driver.submit(0, readable, writable)
        else:
            buffers = driver.submit(0, readable, writable)
            assert buffers.written == buffers.whole, "the status is the last byte, whatever the split"
            assert buffers.whole[-1] in (0, 1, 2)
            if may_change(kind, payload, writable):
                image.write_bytes(before)
                continue
        assert image.read_bytes() == before


def test_the_readable_part_is_a_copy_nothing_can_write(driver: BlkDriver) -> None:
    buffers = driver.submit(0, header(0), [512, 1])
    assert isinstance(buffers.request.readable, bytes)
    assert buffers.request.readable == header(0)
