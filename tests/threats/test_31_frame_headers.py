"""Threat 31: what a driver says about a frame is obeyed by the host's kernel. None of it gets there unchecked."""

import random
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.features import mask
from devices.net import Net
from devices.net_config import F_CSUM, F_HOST_ECN, F_HOST_TSO4, F_HOST_TSO6
from devices.net_header import MAX_HEADERS, MIN_GSO_SIZE, HeaderRules
from tests.devices.net_frames import MAC, OTHER, NetDriver, frame, header, tcp4, tcp6
from tests.devices.net_taps import Kernel, host_of, tap_interface

TSO4, TSO6, ECN = 1, 4, 0x80
FIELDS = struct.Struct("<BBHHHHH")

GOOD = ((1, TSO4, 54, 1000, 34, 16, 0), (1, TSO6, 74, 1000, 54, 16, 0), (1, 0, 0, 0, 34, 16, 0))
FIELD = st.one_of(st.integers(0, 80), st.integers(0, 0xFFFF))
FEATURES = st.integers(0, (1 << 14) - 1)
WHOLE = [
    tcp4(MAC, bytes(3000)),
    tcp6(MAC, bytes(3000)),
    tcp4(MAC, bytes(60000)),
    tcp4(MAC, bytes(200), vlan=1),
    frame(),
]
FRAMES = st.one_of(st.binary(max_size=200), st.sampled_from(WHOLE))


@given(
    data=FRAMES,
    good=st.sampled_from(GOOD),
    wrong=st.tuples(st.integers(0, 255), st.integers(0, 255), *[FIELD] * 5),
    chosen=st.integers(0, 127),
    features=FEATURES,
    mtu=st.integers(68, 65535),
)
def test_whatever_a_driver_says_what_is_handed_on_makes_sense(
    data: bytes, good: tuple[int, ...], wrong: tuple[int, ...], chosen: int, features: int, mtu: int
) -> None:
    """Fields of a good header or wrong ones, as the bits of `chosen` say."""
    fields = [wrong[i] if chosen >> i & 1 else good[i] for i in range(7)]
    result = HeaderRules(features, mtu).transmitted(FIELDS.pack(*fields) + data)
    if result is not None:
        check(result, data, features, mtu)


def check(result: bytes, data: bytes, features: int, mtu: int) -> None:
    """What is handed to the kernel is what a good driver with these features could say of the frame."""
    flags, gso_type, hdr_len, gso_size, start, offset, buffers = FIELDS.unpack(result)
    assert flags in (0, 1)
    assert buffers == 0
    assert len(data) >= 14
    if flags:
        assert features & mask(F_CSUM)
        assert start + offset + 2 <= len(data)
    else:
        assert result == bytes(12)
    longest = mtu + 14 + (4 if data[12:14] == b"\x81\x00" else 0)
    if gso_type:
        assert flags
        assert features & mask({TSO4: F_HOST_TSO4, TSO6: F_HOST_TSO6}[gso_type & ~ECN])
        assert not gso_type & ECN or features & mask(F_HOST_ECN)
        assert start < hdr_len <= min(len(data), MAX_HEADERS)
        assert MIN_GSO_SIZE <= gso_size <= longest - hdr_len
    else:
        assert hdr_len == gso_size == 0
        assert len(data) <= longest


def lies(count: int) -> Iterator[bytes]:
    """Packets with a header that is wrong in some places, of frames that are."""
    chance = random.Random(31)
    frames = (tcp4(OTHER, bytes(3000)), tcp6(OTHER, bytes(3000)), tcp4(OTHER, bytes(65495)), frame(OTHER), bytes(40))
    for _ in range(count):
        packet = bytearray(header(*chance.choice(GOOD)) + chance.choice(frames))
        for _ in range(chance.randrange(4)):
            packet[chance.randrange(80) % len(packet)] = chance.randrange(256)
        yield bytes(packet[: chance.choice((len(packet), chance.randrange(12, len(packet))))])


def test_a_flood_of_lies_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    driver = NetDriver(Net(tap="tap0", mac=MAC, mtu=1500, queues=2))
    try:
        for packet in lies(5000):
            before = driver.net.counters["transmitted"]
            driver.transmit(packet[12:], header=packet[:12])
            got = kernel.receive()
            assert (got is not None) == (driver.net.counters["transmitted"] > before)
            if got is not None:
                assert got[12:] == packet[12:]
                check(got[:12], got[12:], driver.features, 1500)
        assert driver.net.counters.total() == 5000
        assert min(driver.net.counters["transmitted"], driver.net.counters["transmit dropped"]) > 500
    finally:
        driver.reset()
        driver.net.close()
        kernel.close()


@pytest.mark.root
def test_a_real_interface_goes_on_after_a_flood_of_lies() -> None:
    with tap_interface() as interface:
        driver = NetDriver(Net(tap=interface, mac=MAC, mtu=1500))
        try:
            with host_of(interface, 0x88B5) as host:
                for packet in lies(5000):
                    driver.transmit(packet[12:], header=packet[:12])
                assert driver.net.counters["transmitted"] > 500
                last = frame(OTHER, MAC, payload=b"the truth")
                driver.transmit(last)
                while host.recv(1 << 17)[10:] != last:
                    pass
        finally:
            driver.reset()
            driver.net.close()
