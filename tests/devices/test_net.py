"""virtio-net: frames in both directions, mergeable buffers, link, features, queues."""

import logging
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devices import DeviceError, OptionError, RequestError
from devices.features import bits, mask
from devices.net import MAX_PAIRS, Net, parse_mac
from devices.net_config import (
    F_CTRL_VQ,
    F_GUEST_ANNOUNCE,
    F_MAC,
    F_MQ,
    F_MRG_RXBUF,
    F_MTU,
    F_SPEED_DUPLEX,
    F_STATUS,
    FEATURES,
    S_ANNOUNCE,
    S_LINK_UP,
)
from devices.options import build, update
from devices.testing import UNWRITTEN
from tests.devices.net_frames import BROADCAST, MAC, OTHER, Cable, NetDriver, frame, udp4

Make = Callable[..., NetDriver]


@pytest.fixture
def cable(tmp_path: Path) -> Iterator[Cable]:
    cable = Cable(tmp_path)
    yield cable
    cable.close()


@pytest.fixture
def make(cable: Cable) -> Iterator[Make]:
    drivers: list[NetDriver] = []

    def maker(features: int | None = None, **options: object) -> NetDriver:
        device = Net(socket=cable.device_path, peer=cable.path, mac=MAC, **options)  # type: ignore[arg-type]
        drivers.append(NetDriver(device, features))
        return drivers[-1]

    yield maker
    for driver in drivers:
        driver.reset()
        driver.net.close()


def header(buffers: int) -> bytes:
    return struct.pack("<BBHHHHH", 0, 0, 0, 0, 0, 0, buffers)


# ---- Transmission -----------------------------------------------------------------------------------------------


def test_transmitted_frames_leave_without_their_header(make: Make, cable: Cable) -> None:
    driver = make()
    driver.transmit(frame(OTHER, MAC))
    assert cable.receive() == frame(OTHER, MAC)
    assert driver.net.counters["transmitted"] == 1


def test_unknown_header_flags_are_ignored(make: Make, cable: Cable) -> None:
    make().transmit(frame(), header=b"\xfe\x00" + bytes(10))
    assert cable.receive() == frame()


@pytest.mark.parametrize("size", [0, 13])
def test_frames_without_an_ethernet_header_are_dropped(make: Make, cable: Cable, size: int) -> None:
    driver = make()
    driver.transmit(bytes(size))
    assert cable.receive() is None
    assert driver.net.counters["transmit dropped"] == 1


def test_offloads_that_were_not_offered_are_dropped(make: Make, cable: Cable) -> None:
    driver = make()
    for gso_type in (1, 3, 4, 5, 0x20, 0x40, 0x80):
        for flags in (0, 1):
            driver.transmit(frame(), header=bytes((flags, gso_type)) + bytes(10))
    driver.transmit(frame(), header=b"\1" + bytes(11))
    assert cable.receive() is None
    assert driver.net.counters["transmit dropped"] == 15


def test_a_buffer_shorter_than_the_header_is_no_packet(make: Make) -> None:
    with pytest.raises(RequestError, match="shorter than its header"):
        make().send(1, bytes(11))


@pytest.mark.parametrize(("extra", "vlan", "sent"), [(0, None, True), (1, None, False), (0, 5, True), (1, 5, False)])
def test_the_mtu_bounds_what_is_transmitted(make: Make, cable: Cable, extra: int, vlan: int | None, sent: bool) -> None:
    data = frame(vlan=vlan, payload=bytes(1500 + extra))
    make(mtu=1500).transmit(data)
    assert cable.receive() == (data if sent else None)


def test_without_an_mtu_the_largest_frame_is_the_protocols(make: Make, cable: Cable) -> None:
    driver = make()
    driver.transmit(frame(payload=bytes(65535)))
    assert len(cable.receive() or b"") == 65535 + 14
    driver.transmit(frame(payload=bytes(65536)))
    assert cable.receive() is None


def test_frames_without_a_peer_are_dropped_and_come_through_again_with_one(
    make: Make, cable: Cable, tmp_path: Path
) -> None:
    driver = make()
    driver.transmit(frame())
    assert cable.receive() == frame()
    cable.close()
    driver.transmit(frame())
    assert driver.net.counters == {"transmitted": 1, "transmit dropped": 1}
    again = Cable(tmp_path)
    driver.transmit(frame())
    assert again.receive() == frame()
    again.close()


def test_a_peer_that_restarts_between_two_frames_misses_none(make: Make, cable: Cable, tmp_path: Path) -> None:
    driver = make()
    driver.transmit(frame())
    cable.close()
    again = Cable(tmp_path)
    driver.transmit(frame())
    assert again.receive() == frame()
    again.close()


# ---- Reception --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [None, mask(F_MAC)])
def test_a_received_frame_follows_a_header_of_twelve_bytes(make: Make, cable: Cable, features: int | None) -> None:
    driver = make(features)
    (buffers,) = driver.arrive(cable, frame(), [(5, 20, 100)])
    assert buffers.written == header(1) + frame()
    assert driver.net.counters["received"] == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=3), min_size=1, max_size=12),
    payload=st.integers(0, 600),
)
def test_mergeable_buffers_are_filled_in_order_all_but_the_last_completely(
    sizes: list[list[int]], payload: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sizes = [[size + 12, *rest] for size, *rest in sizes]
    cable = Cable(tmp_path_factory.mktemp("net"))
    driver = NetDriver(Net(socket=cable.device_path, peer=cable.path, mac=MAC))
    try:
        data = frame(payload=os.urandom(payload))
        given = driver.arrive(cable, data, sizes)
        if sum(map(sum, sizes)) < 12 + len(data):
            assert all(buffers.done and buffers.written == b"" for buffers in given), "dropped: buffers go back empty"
            assert driver.net.counters["receive without buffers"] == 1
            return
        used = [buffers for buffers in given if buffers.done]
        assert b"".join(buffers.written for buffers in used) == header(len(used)) + data
        assert all(len(buffers.written) == len(buffers.whole) for buffers in used[:-1])
        assert used == given[: len(used)]
        for buffers in given:
            assert set(buffers.whole[len(buffers.written) :]) <= {UNWRITTEN}
    finally:
        driver.reset()
        driver.net.close()
        cable.close()


def test_without_mergeable_buffers_a_frame_uses_one(make: Make, cable: Cable) -> None:
    driver = make(mask(F_MAC))
    small, large = driver.arrive(cable, frame(payload=bytes(300)), [(64,), (2048,)])
    assert (small.done, small.written) == (True, b"")
    assert not large.done
    assert driver.net.counters["receive without buffers"] == 1


@pytest.mark.parametrize("features", [mask(F_MAC), mask(F_MAC, F_MRG_RXBUF)])
@pytest.mark.parametrize("size", [0, 1, 11])
def test_a_receive_buffer_shorter_than_a_header_is_no_buffer(
    make: Make, cable: Cable, features: int, size: int
) -> None:
    driver = make(features)
    driver.give(0, [size])
    cable.send(frame())
    with pytest.raises(RequestError, match="receive buffer shorter than a header"):
        driver.run()


@pytest.mark.parametrize(("extra", "vlan", "passes"), [(0, None, True), (1, None, False), (0, 5, True), (1, 5, False)])
def test_the_mtu_bounds_what_is_received(make: Make, cable: Cable, extra: int, vlan: int | None, passes: bool) -> None:
    driver = make(mask(F_MAC, F_MTU), mtu=1500)
    assert driver.passes(cable, frame(vlan=vlan, payload=bytes(1500 + extra))) is passes


def test_an_mtu_that_was_not_negotiated_bounds_nothing(make: Make, cable: Cable) -> None:
    assert make(mask(F_MAC), mtu=1500).passes(cable, frame(payload=bytes(3000)))


@pytest.mark.parametrize("size", [0, 13])
def test_received_frames_without_an_ethernet_header_are_dropped(make: Make, cable: Cable, size: int) -> None:
    driver = make()
    assert not driver.passes(cable, bytes(size))
    assert driver.net.counters["receive dropped"] == 1


def test_a_datagram_longer_than_any_frame_is_dropped_not_cut(make: Make, cable: Cable) -> None:
    driver = make(mask(F_MAC, F_MRG_RXBUF))
    for size in (65536, 70000, 100_000):
        driver.give(0, [1 << 17])
        cable.send(frame(vlan=3, payload=bytes(size)))
        driver.run()
    assert driver.net.counters == {"receive dropped": 3}


def test_frames_from_before_the_driver_was_ready_are_not_delivered(make: Make, cable: Cable) -> None:
    driver = make()
    driver.reset()
    cable.send(frame(payload=b"stale"))
    driver.start()
    (buffers,) = driver.arrive(cable, frame(payload=b"fresh"))
    assert buffers.written[12:] == frame(payload=b"fresh")


def test_nothing_is_received_after_reset(make: Make, cable: Cable) -> None:
    driver = make()
    driver.reset()
    cable.send(frame())
    driver.run()
    assert driver.net.counters == {}


# ---- Link, announce, configuration ------------------------------------------------------------------------------


def test_a_link_that_is_down_carries_nothing(make: Make, cable: Cable) -> None:
    driver = make()
    driver.net.update(link="down")
    assert (driver.net.config.status, driver.config_changes) == (0, 1)
    driver.transmit(frame())
    assert cable.receive() is None
    assert not driver.passes(cable, frame())
    driver.net.update(link="up")
    assert (driver.net.config.status, driver.config_changes) == (S_LINK_UP, 2)
    driver.net.update(link="up")
    driver.net.update()
    assert driver.config_changes == 2, "what stays is no change"
    driver.transmit(frame())
    assert cable.receive() == frame()


def test_announce_is_asked_for_and_acknowledged(make: Make) -> None:
    driver = make(link="down")
    update(driver.net, {"announce": "on"})
    assert (driver.net.config.status, driver.config_changes) == (S_ANNOUNCE, 1)
    assert driver.control(3, 0) == b"\0"
    assert driver.net.config.status == 0
    update(driver.net, {"announce": "on", "link": "up"})
    driver.reset()
    assert driver.net.config.status == S_LINK_UP, "an announcement that nobody acknowledged ends with the reset"


def test_announce_needs_a_driver_that_knows_it(make: Make) -> None:
    driver = make(mask(F_CTRL_VQ))
    with pytest.raises(DeviceError, match="did not negotiate VIRTIO_NET_F_GUEST_ANNOUNCE"):
        driver.net.update(announce=True)
    driver.reset()
    with pytest.raises(DeviceError):
        driver.net.update(announce=True)
    with pytest.raises(OptionError, match="net: no option 'mtu'; known: link, announce"):
        update(driver.net, {"mtu": "9000"})


def test_the_configuration_says_what_the_options_say() -> None:
    device = build(
        Net,
        {"tap": "tap0", "mac": "52:54:00:12:34:56", "mtu": "9000", "speed": "10000", "duplex": "half", "queues": "4"},
    )
    config = device.config
    assert (config.mac, config.mtu, config.speed, config.duplex) == (MAC, 9000, 10000, 0)
    assert (config.max_virtqueue_pairs, config.status) == (4, S_LINK_UP)


def test_unknown_speed_is_said_to_be_unknown() -> None:
    config = Net(tap="tap0").config
    assert (config.speed, config.duplex) == (0xFFFFFFFF, 0xFF)


def test_a_default_address_is_local_unicast_and_stable() -> None:
    one, again, other = Net(tap="tap0").config.mac, Net(tap="tap0").config.mac, Net(tap="tap1").config.mac
    assert one == again != other
    assert one[0] & 3 == 2


def test_offered_features_keep_their_dependencies_and_have_names() -> None:
    device = Net(tap="tap0", mtu=1500, queues=2)
    assert FEATURES.unmet(device.features) is None
    assert all(FEATURES.name(bit).startswith("VIRTIO_NET_F_") for bit in bits(device.features))
    assert device.features & mask(F_STATUS, F_SPEED_DUPLEX, F_MQ, F_MTU, F_GUEST_ANNOUNCE)
    assert not Net(tap="tap0").features & mask(F_MQ, F_MTU)


@pytest.mark.parametrize(
    ("features", "names"),
    [
        (0, ["receiveq1", "transmitq1", None, None, None, None, None]),
        (mask(F_CTRL_VQ), ["receiveq1", "transmitq1", "controlq", None, None, None, None]),
        (
            mask(F_CTRL_VQ, F_MQ),
            ["receiveq1", "transmitq1", "receiveq2", "transmitq2", "receiveq3", "transmitq3", "controlq"],
        ),
    ],
)
def test_the_control_queue_follows_the_pairs_in_use(features: int, names: list[str | None]) -> None:
    device = Net(tap="tap0", queues=3)
    assert [queue and queue.name for queue in device.queues_for(features)] == names
    assert len(device.queues) == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "net: a net device needs tap=NAME, or socket=PATH and peer=PATH"),
        ({"socket": "/a"}, "needs tap=NAME, or socket=PATH and peer=PATH"),
        ({"peer": "/a"}, "needs tap=NAME, or socket=PATH and peer=PATH"),
        ({"tap": "t", "socket": "/a", "peer": "/b"}, "needs tap=NAME, or socket=PATH and peer=PATH"),
        ({"socket": "/a", "peer": "/a"}, "socket and peer are the same path /a"),
        ({"socket": "/" + "a" * 107, "peer": "/b"}, "is longer than 107 bytes"),
        ({"tap": ""}, "tap= is no interface name"),
        ({"tap": "sixteencharacter"}, "is no interface name of 1 to 15 characters"),
        ({"tap": "a/b"}, "is no interface name"),
        ({"tap": "tap%d"}, "is no interface name"),
        ({"tap": "t", "mtu": "67"}, "mtu=67 is not from 68 to 65535"),
        ({"tap": "t", "mtu": "65536"}, "mtu=65536 is not from 68 to 65535"),
        ({"tap": "t", "queues": "0"}, f"queues=0 is not from 1 to {MAX_PAIRS}"),
        ({"tap": "t", "queues": "65"}, f"queues=65 is not from 1 to {MAX_PAIRS}"),
        ({"tap": "t", "speed": "2147483648"}, "speed=2147483648 is not from 0 to 2147483647"),
        ({"tap": "t", "mac": "52:54:00:12:34"}, "expected an address, as 52:54:00:12:34:56"),
        ({"tap": "t", "mac": "52:54:00:12:34:5g"}, "expected an address"),
        ({"tap": "t", "mac": "01:00:5e:00:00:01"}, "expected the address of one station"),
        ({"tap": "t", "mac": "00:00:00:00:00:00"}, "expected the address of one station"),
        ({"tap": "t", "link": "sideways"}, "link=sideways: expected one of up, down"),
    ],
)
def test_wrong_options(options: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        build(Net, options)
    assert message in str(caught.value)


def test_a_group_address_is_refused_however_it_comes() -> None:
    with pytest.raises(ValueError, match="mac=ff:ff:ff:ff:ff:ff is not the address of one station"):
        Net(tap="t", mac=BROADCAST)
    assert parse_mac("aA:bb:CC:dd:ee:0f") == bytes.fromhex("aabbccddee0f")


# ---- Queue pairs ------------------------------------------------------------------------------------------------


def test_before_pairs_are_set_everything_arrives_on_the_first(make: Make, cable: Cable) -> None:
    driver = make(queues=4)
    flow = udp4(MAC, (b"\x0a\0\0\1", 1000), (b"\x0a\0\0\2", 53))
    driver.transmit(flow, pair=3)
    (buffers,) = driver.arrive(cable, flow)
    assert buffers.done


def test_a_flow_arrives_where_its_answers_leave(make: Make, cable: Cable) -> None:
    driver = make(queues=4)
    assert driver.control(4, 0, (4).to_bytes(2, "little")) == b"\0"
    local, remote = (b"\x0a\0\0\1", 1000), (b"\x0a\0\0\2", 53)
    for pair in (2, 0, 3, 1):
        driver.transmit(udp4(OTHER, local, remote), pair=pair)
        (buffers,) = driver.arrive(cable, udp4(MAC, remote, local), pair=pair)
        assert buffers.written[12:] == udp4(MAC, remote, local)


def test_pairs_that_are_no_longer_in_use_get_nothing(make: Make, cable: Cable) -> None:
    driver = make(queues=4)
    local, remote = (b"\x0a\0\0\1", 1000), (b"\x0a\0\0\2", 53)
    driver.control(4, 0, (4).to_bytes(2, "little"))
    driver.transmit(udp4(OTHER, local, remote), pair=3)
    assert driver.control(4, 0, (1).to_bytes(2, "little")) == b"\0"
    (buffers,) = driver.arrive(cable, udp4(MAC, remote, local), pair=0)
    assert buffers.done


# ---- The host's end ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["receiving", "starting"])
def test_a_cable_that_is_gone_takes_the_link_down_not_the_device(
    make: Make, cable: Cable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, when: str
) -> None:
    driver = make()

    def gone(*_: object) -> bytes:
        raise OSError(77, "file descriptor in bad state")

    monkeypatch.setattr("devices.net_backends.SocketBackend.receive", gone)
    with caplog.at_level(logging.ERROR):
        for _ in range(100):
            if when == "starting":
                driver.reset()
                driver.start()
            cable.send(frame())
            driver.run()
            driver.net._cable._receiver.recv(100)  # type: ignore[attr-defined]  # makes room for the next one
    assert driver.net.config.status & S_LINK_UP == 0
    assert driver.config_changes == 1
    assert len(caplog.records) == 1
    assert "the link is down" in caplog.text


def test_two_devices_exchange_frames(tmp_path: Path) -> None:
    one = NetDriver(Net(socket=tmp_path / "one", peer=tmp_path / "two", mac=MAC))
    two = NetDriver(Net(socket=tmp_path / "two", peer=tmp_path / "one", mac=OTHER))
    try:
        for number in range(20):
            data = frame(OTHER, MAC, payload=b"%d" % number)
            one.transmit(data)
            buffers = two.give(0, [2048])
            two.run()
            assert buffers.written[12:] == data
            two.transmit(frame(MAC, OTHER, payload=b"back"))
            buffers = one.give(0, [2048])
            one.run()
            assert buffers.written[12:] == frame(MAC, OTHER, payload=b"back")
    finally:
        for driver in (one, two):
            driver.reset()
            driver.net.close()
    assert list(tmp_path.iterdir()) == []
