"""virtio-rng."""

from devices.rng import MAX_BYTES, Rng
from devices.testing import UNWRITTEN, MockDriver


def test_buffers_are_filled_with_fresh_bytes() -> None:
    driver = MockDriver(Rng())
    driver.start()
    one, other = driver.send(0, b"", [40, 24]), driver.send(0, b"", [64])
    assert len(one) == len(other) == 64
    assert one != other
    assert one != bytes([UNWRITTEN]) * 64


def test_the_work_of_one_request_is_bounded() -> None:
    driver = MockDriver(Rng())
    driver.start()
    buffers = driver.submit(0, b"", [MAX_BYTES, MAX_BYTES])
    assert buffers.request.written == MAX_BYTES
    assert buffers.whole[MAX_BYTES:] == bytes([UNWRITTEN]) * MAX_BYTES


def test_a_request_without_buffers_gets_nothing() -> None:
    driver = MockDriver(Rng())
    driver.start()
    assert driver.send(0) == b""
