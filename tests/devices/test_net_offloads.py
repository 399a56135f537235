"""Offloads of a tap interface: frames with their headers in both directions, and who may turn them on and off."""

import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devices import OptionError
from devices.features import mask
from devices.net import Net
from devices.net_backends import TapBackend
from devices.net_config import (
    F_CSUM,
    F_CTRL_GUEST_OFFLOADS,
    F_CTRL_VQ,
    F_GUEST_CSUM,
    F_GUEST_ECN,
    F_GUEST_TSO4,
    F_GUEST_TSO6,
    F_MAC,
    OFFLOADS,
)
from devices.options import build
from tests.devices.net_frames import (
    CONTROL_ERR,
    CONTROL_OK,
    MAC,
    OTHER,
    NetDriver,
    checksum,
    frame,
    header,
    tcp4,
    tcp6,
    udp4,
)
from tests.devices.net_taps import ETH_IP, Kernel, host_of, tap_interface

TSO4, TSO6 = 1, 4
# linux/if_tun.h
TUN_CSUM, TUN_TSO4, TUN_TSO6, TUN_ECN = 1, 2, 4, 8
GUEST_OFFLOADS_CLASS = 5
LARGE = 65535 - 40


Make = Callable[..., NetDriver]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    kernel = Kernel(monkeypatch)
    yield kernel
    kernel.close()


@pytest.fixture
def make(kernel: Kernel) -> Iterator[Make]:
    drivers: list[NetDriver] = []

    def maker(features: int | None = None, **options: object) -> NetDriver:
        drivers.append(NetDriver(Net(tap="tap0", mac=MAC, **options), features))  # type: ignore[arg-type]
        return drivers[-1]

    yield maker
    for driver in drivers:
        driver.reset()
        driver.net.close()


# ---- What is offered ----------------------------------------------------------------------------------------------


def test_a_tap_has_offloads_unless_they_are_switched_off() -> None:
    assert mask(0, 1, 2, 7, 8, 9, 11, 12, 13) == OFFLOADS
    others = mask(10, 14, 51, 54, 55, 56, 57, 59, 60, 61)
    for options in ({}, {"offloads": "on"}, {"mtu": "1500", "queues": "4"}):
        features = build(Net, {"tap": "tap0", **options}).features
        assert features & OFFLOADS == OFFLOADS
        assert features & others == 0
    assert build(Net, {"tap": "tap0", "offloads": "off"}).features & (OFFLOADS | others) == 0
    with pytest.raises(OptionError, match="offloads=some"):
        build(Net, {"tap": "tap0", "offloads": "some"})


def test_a_socket_has_none() -> None:
    assert build(Net, {"socket": "/a", "peer": "/b", "offloads": "on"}).features & OFFLOADS == 0


# ---- Transmission -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queues", [1, 2])
def test_a_frame_of_many_segments_goes_to_the_kernel_as_one(make: Make, kernel: Kernel, queues: int) -> None:
    driver = make(mtu=1500, queues=queues)
    data = tcp4(OTHER, os.urandom(LARGE))
    driver.transmit(data, header=header(1, TSO4, 54, 1446, 34, 16, 3))
    assert kernel.receive() == header(1, TSO4, 54, 1446, 34, 16) + data
    data = tcp6(OTHER, os.urandom(9000))
    driver.transmit(data, header=header(1, TSO6, 74, 1426, 54, 16))
    assert kernel.receive() == header(1, TSO6, 74, 1426, 54, 16) + data
    driver.transmit(frame())
    assert kernel.receive() == header() + frame()
    assert driver.net.counters == {"transmitted": 3}


def test_segments_fit_the_interface_where_nobody_said_an_mtu(
    make: Make, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TapBackend, "mtu", lambda _: 1500)
    fits, too_large = header(1, TSO4, 54, 1460, 34, 16), header(1, TSO4, 54, 1461, 34, 16)
    data = tcp4(OTHER, os.urandom(LARGE))
    driver = make()
    driver.transmit(data, header=too_large)
    assert kernel.receive() is None
    driver.transmit(data, header=fits)
    assert kernel.receive() == fits + data
    # What was said counts, also for a driver that does not know of it.
    driver = make(OFFLOADS, mtu=9000)
    driver.transmit(data, header=too_large)
    assert kernel.receive() == too_large + data


def test_the_mtu_of_an_interface_is_what_it_has_now(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("devices.net_backends._INTERFACES", tmp_path)
    tap = TapBackend("tap0")
    assert tap.mtu() == 65535
    (tmp_path / "tap0").mkdir()
    (tmp_path / "tap0" / "mtu").write_text("9000\n")
    assert tap.mtu() == 9000


def test_what_was_not_negotiated_is_dropped_and_counted(make: Make, kernel: Kernel) -> None:
    driver = make(mask(F_MAC, F_CSUM))
    driver.transmit(tcp4(OTHER, bytes(3000)), header=header(1, TSO4, 54, 1446, 34, 16))
    assert kernel.receive() is None
    driver.transmit(tcp4(OTHER, bytes(1000)), header=header(1, 0, 0, 0, 34, 16))
    assert kernel.receive() == header(1, 0, 0, 0, 34, 16) + tcp4(OTHER, bytes(1000))
    driver.reset()
    driver.start(mask(F_MAC))
    driver.transmit(tcp4(OTHER, bytes(1000)), header=header(1, 0, 0, 0, 34, 16))
    assert kernel.receive() is None
    assert driver.net.counters == {"transmitted": 1, "transmit dropped": 2}


def test_without_offloads_frames_have_no_header_in_the_kernel(make: Make, kernel: Kernel) -> None:
    driver = make(offloads=False)
    driver.transmit(frame())
    assert kernel.receive() == frame()
    buffers = driver.give(0, [2048])
    kernel.send(frame())
    driver.run()
    assert buffers.written == header(buffers=1) + frame()


# ---- Reception ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "count"), [(4096, 17), (1536, 43), (70000, 1)])
def test_a_frame_of_many_segments_spreads_over_the_drivers_buffers(
    make: Make, kernel: Kernel, size: int, count: int
) -> None:
    driver = make(mtu=1500)
    data = tcp4(MAC, os.urandom(LARGE))
    given = [driver.give(0, [size]) for _ in range(count + 1)]
    kernel.send(header(1, TSO4, 54, 1446, 34, 16) + data)
    driver.run()
    assert [buffers.done for buffers in given] == [True] * count + [False]
    expected = header(1, TSO4, 54, 1446, 34, 16, buffers=count) + data
    assert b"".join(buffers.written for buffers in given) == expected
    assert driver.net.counters == {"received": 1}


def test_a_frame_of_many_segments_needs_all_its_buffers(make: Make, kernel: Kernel) -> None:
    driver = make()
    given = [driver.give(0, [4096]) for _ in range(16)]
    kernel.send(header(1, TSO4, 54, 1446, 34, 16) + tcp4(MAC, bytes(LARGE)))
    driver.run()
    assert all(buffers.done and buffers.written == b"" for buffers in given)
    assert driver.net.counters == {"receive without buffers": 1}


def test_without_mergeable_buffers_it_takes_one_that_is_large(make: Make, kernel: Kernel) -> None:
    driver = make(mask(F_MAC, F_GUEST_CSUM, F_GUEST_TSO4))
    buffers = driver.give(0, [12, 4096, 65536])
    kernel.send(header(1, TSO4, 54, 1446, 34, 16) + tcp4(MAC, bytes(LARGE)))
    driver.run()
    assert buffers.written == header(1, TSO4, 54, 1446, 34, 16, 1) + tcp4(MAC, bytes(LARGE))


def test_the_filter_and_the_steering_look_behind_the_header(make: Make, kernel: Kernel) -> None:
    driver = make(queues=4)
    driver.control(4, 0, (4).to_bytes(2, "little"))
    local, remote = (b"\x0a\x63\0\2", 2000), (b"\x0a\x63\0\1", 1000)
    driver.transmit(udp4(OTHER, local, remote), pair=2)  # the flow table does not tell TCP from UDP
    for to, received in ((MAC, True), (OTHER, False)):
        buffers = driver.give(4, [70000])
        kernel.send(header(1, TSO4, 54, 1446, 34, 16) + tcp4(to, bytes(LARGE)))
        driver.run()
        assert buffers.done == received
    assert driver.net.counters == {"transmitted": 1, "received": 1, "receive filtered": 1}


# ---- Who chooses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "asked"),
    [
        ((), 0),
        ((F_CSUM,), 0),
        ((F_GUEST_CSUM,), TUN_CSUM),
        ((F_GUEST_CSUM, F_GUEST_TSO4), TUN_CSUM | TUN_TSO4),
        ((F_GUEST_CSUM, F_GUEST_TSO6, F_GUEST_ECN), TUN_CSUM | TUN_TSO6 | TUN_ECN),
        ((F_GUEST_CSUM, F_GUEST_TSO4, F_GUEST_TSO6, F_GUEST_ECN), TUN_CSUM | TUN_TSO4 | TUN_TSO6 | TUN_ECN),
    ],
)
def test_the_kernel_leaves_undone_what_was_negotiated_until_the_reset(
    make: Make, kernel: Kernel, bits: tuple[int, ...], asked: int
) -> None:
    driver = make(mask(F_MAC, *bits))
    assert kernel.offloads == [asked]
    driver.reset()
    assert kernel.offloads == [asked, 0]


def command(driver: NetDriver, *bits: int) -> bytes:
    return driver.control(GUEST_OFFLOADS_CLASS, 0, mask(*bits).to_bytes(8, "little"))


def test_the_driver_turns_offloads_off_and_on(make: Make, kernel: Kernel) -> None:
    driver = make()
    large = header(1, TSO4, 54, 1446, 34, 16) + tcp4(MAC, bytes(9000))
    for bits, asked, passes in (((), 0, False), ((F_GUEST_CSUM, F_GUEST_TSO4), TUN_CSUM | TUN_TSO4, True)):
        assert command(driver, *bits) == CONTROL_OK
        assert kernel.offloads[-1] == asked
        buffers = driver.give(0, [70000])
        kernel.send(large)  # was on its way before
        driver.run()
        assert buffers.done == passes
        driver._available.clear()
    assert driver.net.counters == {"received": 1, "receive dropped": 1}


def test_offloads_that_cannot_be_are_refused(make: Make, kernel: Kernel) -> None:
    driver = make(mask(F_MAC, F_CTRL_VQ, F_CTRL_GUEST_OFFLOADS, F_GUEST_CSUM, F_GUEST_TSO4, F_GUEST_ECN))
    before = list(kernel.offloads)
    for bits in ((F_GUEST_TSO4,), (F_GUEST_CSUM, F_GUEST_ECN), (F_GUEST_CSUM, F_GUEST_TSO6), (F_CSUM,), (10,), (63,)):
        assert command(driver, *bits) == CONTROL_ERR
    for data in (b"", bytes(7), bytes(9)):
        assert driver.control(GUEST_OFFLOADS_CLASS, 0, data) == CONTROL_ERR
    assert driver.control(GUEST_OFFLOADS_CLASS, 1, bytes(8)) == CONTROL_ERR
    assert kernel.offloads == before
    kernel.fails = True
    assert command(driver) == CONTROL_ERR
    kernel.fails = False
    driver.reset()
    driver.start(mask(F_MAC, F_CTRL_VQ, F_GUEST_CSUM))
    assert command(driver, F_GUEST_CSUM) == CONTROL_ERR, "the command was not negotiated"


def test_an_interface_that_is_gone_takes_the_link_down(make: Make, kernel: Kernel) -> None:
    driver = make()
    kernel.fails = True
    driver.reset()
    driver.start()
    assert driver.net.config.status == 0


# ---- A real interface ---------------------------------------------------------------------------------------------

LARGE_HEADER = header(1, TSO4, 54, 1446, 34, 16)[:10]


@pytest.fixture
def interface() -> Iterator[str]:
    with tap_interface() as name:
        yield name


def receive_all(driver: NetDriver, count: int) -> list[bytes]:
    """Packets of IPv4 that the driver gets, in a buffer each: `count` of them."""
    packets: list[bytes] = []
    deadline = time.monotonic() + 10
    given = [driver.give(0, [70000]) for _ in range(64)]
    while len(packets) < count:
        assert time.monotonic() < deadline, (len(packets), driver.net.counters)
        driver.run()
        done = [buffers.written for buffers in given if buffers.done]
        packets += [packet for packet in done if packet[24:26] == b"\x08\x00"]
        given = [buffers for buffers in given if not buffers.done]
    return packets


@pytest.mark.root
def test_a_real_tap_takes_and_gives_frames_of_many_segments(interface: str) -> None:
    driver = NetDriver(Net(tap=interface, mac=MAC, mtu=1500))
    try:
        with host_of(interface, ETH_IP) as host:
            out = tcp4(OTHER, os.urandom(LARGE), sender=MAC)
            driver.transmit(out, header=header(1, TSO4, 54, 1446, 34, 16))
            got = host.recv(1 << 17)
            fields = struct.unpack("<BBHHHH", got[:10])
            assert (fields[:2], fields[3:]) == ((1, TSO4), (1446, 34, 16))
            assert got[10:] == out

            into = tcp4(MAC, os.urandom(65535 - 54))  # the most that Linux sends to a device at once
            host.send(LARGE_HEADER + into)
            (packet,) = receive_all(driver, 1)
            assert (packet[:2], packet[4:12]) == (b"\1\1", header(0, 0, 0, 1446, 34, 16, 1)[4:])
            assert packet[12:] == into
    finally:
        driver.reset()
        driver.net.close()


@pytest.mark.root
@pytest.mark.parametrize("how", ["option", "not negotiated", "command"])
def test_a_real_tap_gives_whole_frames_to_who_wants_no_others(interface: str, how: str) -> None:
    driver = NetDriver(Net(tap=interface, mac=MAC, offloads=how != "option"), mask(F_MAC) if how != "command" else None)
    try:
        if how == "command":
            assert command(driver) == CONTROL_OK
        into = tcp4(MAC, os.urandom(4000))
        with host_of(interface, ETH_IP) as host:
            host.send(LARGE_HEADER + into)
            packets = receive_all(driver, 3)
        assert all(packet[:12] == header(buffers=1) for packet in packets)
        frames = [packet[12:] for packet in packets]
        assert [len(each) for each in frames] == [54 + 1446, 54 + 1446, 54 + 1108]
        assert b"".join(each[54:] for each in frames) == into[54:]
        for each in frames:
            assert checksum(each[26:34] + struct.pack("!HH", 6, len(each) - 34) + each[34:]) == 0
    finally:
        driver.reset()
        driver.net.close()


@pytest.mark.root
def test_the_next_user_of_an_interface_gets_whole_frames(interface: str) -> None:
    driver = NetDriver(Net(tap=interface, mac=MAC))
    driver.net.close()
    with Path("/dev/net/tun").open("r+b", buffering=0) as tun:
        fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH14x", interface.encode(), 0x1002))
        os.set_blocking(tun.fileno(), False)
        sizes: list[int] = []
        deadline = time.monotonic() + 10
        with host_of(interface, ETH_IP) as host:
            host.send(LARGE_HEADER + tcp4(MAC, bytes(4000)))
            while len(sizes) < 3:
                assert time.monotonic() < deadline
                if (data := tun.read(70000)) and data[12:14] == b"\x08\x00":
                    sizes.append(len(data))
        assert sizes == [54 + 1446, 54 + 1446, 54 + 1108]
