"""Threat 12: used.len larger than written. What a model says it wrote, it wrote; behind that, nothing changed.

Each request runs twice, with buffers that held different bytes before. The first used.len bytes must not depend on
what they held, and the others must still hold it; nor may anything around the buffers change.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices import Device, Request, RequestError
from devices.blk import Blk
from devices.net import Net
from devices.rng import Rng
from devices.testing import MockDriver
from tests.devices.blk_requests import make_image
from tests.devices.net_frames import MAC, Cable, frame

GUARD = 16
Shape = list[int]

SHAPES = st.lists(st.integers(0, 700), max_size=5)
BLK_HEADERS = st.builds(
    lambda kind, sector: kind.to_bytes(4, "little") + bytes(4) + sector.to_bytes(8, "little"),
    st.sampled_from([0, 0, 0, 1, 4, 8, 10, 11, 13, 99]),
    st.one_of(st.integers(0, 70), st.integers((1 << 64) - 3, (1 << 64) - 1)),
)
BLK_REQUESTS = st.builds(bytes.__add__, BLK_HEADERS, st.one_of(st.just(b""), st.binary(max_size=64)))


class Memory:
    """Guest memory with buffers of the given sizes in it, all of it holding `value`."""

    def __init__(self, sizes: Shape, value: int) -> None:
        self.value = value
        self.sizes = sizes
        self.all = bytearray([value]) * (sum(sizes) + GUARD * (len(sizes) + 1))
        self.views: list[memoryview] = []
        at = GUARD
        for size in sizes:
            self.views.append(memoryview(self.all)[at : at + size])
            at += size + GUARD

    def written(self, used: int) -> bytes:
        """The first `used` bytes of the buffers; checks that everything else is as it was."""
        joined = b"".join(self.views)
        assert used <= len(joined)
        assert set(joined[used:]) <= {self.value}, "written beyond used.len"
        at = 0
        for size in self.sizes:
            assert set(self.all[at : at + GUARD]) <= {self.value}, "written around the buffers"
            at += GUARD + size
        assert set(self.all[at:]) <= {self.value}
        return joined[:used]


def run(serve: Callable[[Request], object], queue: int, readable: bytes, sizes: Shape, value: int) -> bytes | None:
    memory = Memory(sizes, value)
    request = Request(queue, 1, readable, memory.views)
    try:
        serve(request)
    except RequestError:
        return None
    return memory.written(request.written)


def check(serve: Callable[[Request], object], queue: int, readable: bytes, sizes: Shape) -> None:
    assert run(serve, queue, readable, sizes, 0xA5) == run(serve, queue, readable, sizes, 0x5A)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("used_len")


@pytest.fixture(scope="module")
def blk(directory: Path) -> Iterator[Blk]:
    make_image(directory / "disk.img")
    device = Blk(path=directory / "disk.img", serial="serial")
    device.open()
    MockDriver(device).start()
    yield device
    device.close()


@given(readable=BLK_REQUESTS, sizes=SHAPES)
def test_blk(blk: Blk, readable: bytes, sizes: Shape) -> None:
    check(blk.requestq, 0, readable, sizes)


@given(readable=BLK_REQUESTS, sizes=SHAPES, done=st.integers(0, 2))
def test_blk_whose_file_fails(blk: Blk, readable: bytes, sizes: Shape, done: int) -> None:
    """The read fails after `done` pieces were transferred."""

    left = 0

    def preadv(_: int, views: list[memoryview], __: int) -> int:
        nonlocal left
        if left == 0:
            raise OSError(5, "injected")
        left -= 1
        views[0][:] = b"\x11" * len(views[0])
        return len(views[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "preadv", preadv)
        results = []
        for value in (0xA5, 0x5A):
            left = done
            results.append(run(blk.requestq, 0, readable, sizes, value))
    assert results[0] == results[1]


@given(sizes=st.lists(st.integers(0, 70_000), max_size=3))
def test_rng(sizes: Shape) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "urandom", lambda size: b"\x33" * size)
        check(Rng().requestq, 0, b"", sizes)


@given(queue=st.sampled_from([1, 2]), readable=st.binary(max_size=100), sizes=SHAPES)
def test_net_transmit_and_control(directory: Path, queue: int, readable: bytes, sizes: Shape) -> None:
    device = Net(socket=directory / "never-opened", peer=directory / "nobody", mac=MAC)
    check(device.transmitq if queue == 1 else device.controlq, queue, readable, sizes)


@given(sizes=st.lists(st.lists(st.integers(0, 400), min_size=1, max_size=3), max_size=5), mergeable=st.booleans())
def test_net_receive(tmp_path_factory: pytest.TempPathFactory, sizes: list[Shape], mergeable: bool) -> None:
    directory = tmp_path_factory.mktemp("net")
    cable = Cable(directory)
    device = Net(socket=cable.device_path, peer=cable.path, mac=MAC)
    device.open()
    results: list[list[bytes] | None] = []
    for value in (0xA5, 0x5A):
        driver = ReceiveDriver(device, [Memory(shape, value) for shape in sizes])
        driver.start(None if mergeable else device.features & ~(1 << 15))
        cable.send(frame(payload=b"\x77" * 500))
        try:
            driver.run()
        except RequestError:
            results.append(None)
        else:
            results.append([memory.written(driver.used.get(head, 0)) for head, memory in enumerate(driver.memories)])
        driver.reset()
    device.close()
    cable.close()
    assert results[0] == results[1]


class ReceiveDriver(MockDriver):
    """Receive buffers in guarded memory, the index of each being its head."""

    def __init__(self, device: Device, memories: list[Memory]) -> None:
        super().__init__(device)
        self.memories = memories
        self.next = 0
        self.used: dict[int, int] = {}

    def pop(self, queue: int) -> Request | None:
        if self.next == len(self.memories):
            return None
        self.next += 1
        return Request(queue, self.next - 1, b"", self.memories[self.next - 1].views)

    def complete(self, request: Request) -> None:
        self.used[request.head] = request.written
