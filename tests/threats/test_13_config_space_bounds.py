"""Threat 13: configuration space out of bounds; the model's side, every device, every offset and length.

The engine checks the range of every access first; a model that is asked all the same refuses too, and changes
nothing but what the driver may write.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from devices import Device
from devices.blk import Blk
from devices.net import Net
from devices.options import Size
from devices.rng import Rng
from devices.testing import MockDriver

FAR = [1 << 8, 1 << 16, 1 << 31, 1 << 32, 1 << 63, 1 << 64, 1 << 65]
NEAR = [-1, 0, 1]


def blk() -> Device:
    return Blk(path=Path("none.img"), queues=4, size=Size(1 << 20))


def net() -> Device:
    return Net(tap="tap0", queues=4, mtu=1500)


DEVICES: list[Callable[[], Device]] = [blk, net, Rng]


def started(make: Callable[[], Device]) -> Device:
    """With every feature negotiated, so that everything that can be written can be written."""
    device = make()
    MockDriver(device)
    device.features_ok(device.features)
    if isinstance(device, Blk):
        device.activate(device.features, [0])
    return device


@pytest.mark.parametrize("make", DEVICES)
def test_only_writable_bytes_in_range_ever_change(make: Callable[[], Device]) -> None:
    device = started(make)
    size = device.config.size
    writable = device.writable_mask()
    assert len(writable) == len(device.hooked_reads()) == len(device.hooked_writes()) == size
    offsets = [*range(-2, size + 4), *(far + near for far in FAR for near in NEAR), *(-far for far in FAR)]
    for offset in offsets:
        for length in [*range(size + 4), 256, 257, 65536]:
            before = bytes(device.config.memory)
            taken = device.config_write(offset, b"\x00" * length)
            inside = offset >= 0 and offset + length <= size
            assert taken == (inside and 0 not in writable[offset : offset + length]), (offset, length)
            after = bytes(device.config.memory)
            if not taken or length == 0:
                assert after == before
            assert all(writable[at] for at in range(size) if after[at] != before[at])
            assert len(after) == size


@pytest.mark.parametrize("make", DEVICES)
def test_any_value_of_a_writable_byte_is_stored_or_refused(make: Callable[[], Device]) -> None:
    device = started(make)
    for offset, writable in enumerate(device.writable_mask()):
        for value in range(256) if writable else ():
            before = device.config.memory[offset]
            taken = device.config_write(offset, bytes([value]))
            assert device.config.memory[offset] == (value if taken else before)


@pytest.mark.parametrize("make", DEVICES)
def test_refreshing_any_range_is_harmless(make: Callable[[], Device]) -> None:
    device = started(make)
    before = bytes(device.config.memory)
    for offset in [*range(-2, device.config.size + 4), *(far + near for far in FAR for near in NEAR)]:
        for length in (0, 1, 2, 4, 8, 256, 1 << 32, 1 << 64):
            device.config_refresh(offset, length)
    assert bytes(device.config.memory) == before


@pytest.mark.parametrize("make", DEVICES)
def test_the_driver_sees_no_byte_behind_the_exposed_space(make: Callable[[], Device]) -> None:
    config = make().config
    assert len(config.memory) == config.bytes.nbytes == config.size <= len(config.whole)
    assert bytes(config.whole[config.size :]) == bytes(len(config.whole) - config.size)
