"""The control queue, and receive filters that really filter (virtio 1.3 section 5.1.6.5)."""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices import RequestError
from devices.features import mask
from devices.net import Net
from devices.net_config import (
    F_CTRL_MAC_ADDR,
    F_CTRL_RX,
    F_CTRL_RX_EXTRA,
    F_CTRL_VLAN,
    F_CTRL_VQ,
    F_MAC,
    F_MQ,
    GUEST_OFFLOADS,
    S_LINK_UP,
)
from devices.net_control import Control
from devices.net_filter import MAX_ADDRESSES, ReceiveFilter
from devices.testing import MockDriver
from tests.devices.net_frames import BROADCAST, CONTROL_ERR, CONTROL_OK, GROUP, MAC, OTHER, Cable, NetDriver, frame

STRANGER = bytes.fromhex("525400000099")
PROMISC, ALLMULTI, ALLUNI, NOMULTI, NOUNI, NOBCAST = range(6)
RX, MAC_CLASS, VLAN, ANNOUNCE, MQ = range(5)

Make = Callable[..., NetDriver]


@pytest.fixture
def cable(tmp_path: Path) -> Iterator[Cable]:
    cable = Cable(tmp_path)
    yield cable
    cable.close()


@pytest.fixture
def make(cable: Cable) -> Iterator[Make]:
    drivers: list[NetDriver] = []

    def maker(features: int | None = None, queues: int = 1) -> NetDriver:
        device = Net(socket=cable.device_path, peer=cable.path, mac=MAC, queues=queues)
        drivers.append(NetDriver(device, features))
        return drivers[-1]

    yield maker
    for driver in drivers:
        driver.reset()
        driver.net.close()


@pytest.fixture
def driver(make: Make) -> NetDriver:
    return make()


def table(*macs: bytes) -> bytes:
    return struct.pack("<I", len(macs)) + b"".join(macs)


def reach(driver: NetDriver, cable: Cable) -> set[str]:
    frames = {"own": frame(MAC), "stranger": frame(STRANGER), "group": frame(GROUP), "all": frame(BROADCAST)}
    return {name for name, data in frames.items() if driver.passes(cable, data)}


def test_before_the_driver_says_what_it_wants_everything_passes(driver: NetDriver, cable: Cable) -> None:
    driver.reset()
    MockDriver.start(driver)  # as after a restart of the emulator, of which the driver knows nothing
    assert reach(driver, cable) == {"own", "stranger", "group", "all"}
    assert driver.passes(cable, frame(vlan=7))


def test_a_driver_that_wants_no_more_gets_its_own_and_broadcast_frames(driver: NetDriver, cable: Cable) -> None:
    assert reach(driver, cable) == {"own", "all"}
    assert driver.net.counters["receive filtered"] == 2


def test_a_driver_without_filters_gets_everything(make: Make, cable: Cable) -> None:
    driver = make(mask(F_MAC, F_CTRL_VQ))
    assert reach(driver, cable) == {"own", "stranger", "group", "all"}
    assert driver.passes(cable, frame(vlan=7))


def test_a_driver_with_an_address_we_do_not_know_gets_all_unicast(make: Make, cable: Cable) -> None:
    driver = make(mask(F_CTRL_VQ, F_CTRL_RX, F_CTRL_MAC_ADDR))
    assert reach(driver, cable) == {"own", "stranger", "all"}
    assert driver.control(MAC_CLASS, 1, OTHER) == CONTROL_OK
    assert reach(driver, cable) == {"all"}
    assert driver.passes(cable, frame(OTHER))


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        ([PROMISC], {"own", "stranger", "group", "all"}),
        ([PROMISC, NOMULTI, NOUNI, NOBCAST], {"own", "stranger", "group", "all"}),
        ([ALLMULTI], {"own", "group", "all"}),
        ([ALLUNI], {"own", "stranger", "all"}),
        ([NOMULTI], {"own", "all"}),
        ([ALLMULTI, NOMULTI], {"own", "all"}),
        ([NOUNI], {"all"}),
        ([ALLUNI, NOUNI], {"all"}),
        ([NOBCAST], {"own"}),
        ([ALLMULTI, NOBCAST], {"own", "group"}),
    ],
)
def test_receive_modes(driver: NetDriver, cable: Cable, modes: list[int], expected: set[str]) -> None:
    for mode in modes:
        assert driver.control(RX, mode, b"\1") == CONTROL_OK
    assert reach(driver, cable) == expected
    for mode in modes:
        assert driver.control(RX, mode, b"\0") == CONTROL_OK
    assert reach(driver, cable) == {"own", "all"}


def test_the_mac_table_is_replaced_as_a_whole(driver: NetDriver, cable: Cable) -> None:
    assert driver.control(MAC_CLASS, 0, table(STRANGER) + table(GROUP)) == CONTROL_OK
    assert reach(driver, cable) == {"own", "stranger", "group", "all"}
    assert driver.control(MAC_CLASS, 0, table(STRANGER) + table()) == CONTROL_OK
    assert reach(driver, cable) == {"own", "stranger", "all"}
    assert driver.control(MAC_CLASS, 0, table() + table()) == CONTROL_OK
    assert reach(driver, cable) == {"own", "all"}


def test_more_addresses_than_are_kept_let_all_of_their_kind_pass(driver: NetDriver, cable: Cable) -> None:
    many = [bytes((2, 0, 0, 0, 1, number)) for number in range(MAX_ADDRESSES + 1)]
    groups = [bytes((3, 0, 0, 0, 1, number)) for number in range(MAX_ADDRESSES + 1)]
    assert driver.control(MAC_CLASS, 0, table(*many) + table()) == CONTROL_OK
    assert reach(driver, cable) == {"own", "stranger", "all"}
    assert driver.control(MAC_CLASS, 0, table() + table(*groups)) == CONTROL_OK
    assert reach(driver, cable) == {"own", "group", "all"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0",
        table(),
        table(STRANGER),
        table() + b"\0\0\0",
        table() + table() + b"x",
        table(STRANGER)[:-1] + table(),
        struct.pack("<I", 2) + STRANGER + table(),
        struct.pack("<I", 0xFFFFFFFF) + STRANGER * 4,
        table() + struct.pack("<I", 0xFFFFFFFF),
        struct.pack("<I", 0x2AAAAAAB) + STRANGER,
    ],
)
def test_a_malformed_mac_table_changes_nothing(driver: NetDriver, cable: Cable, data: bytes) -> None:
    driver.control(MAC_CLASS, 0, table(STRANGER) + table())
    assert driver.control(MAC_CLASS, 0, data) == CONTROL_ERR
    assert reach(driver, cable) == {"own", "stranger", "all"}


def test_the_address_can_be_set_and_reset_restores_it(driver: NetDriver, cable: Cable) -> None:
    assert driver.control(MAC_CLASS, 1, STRANGER) == CONTROL_OK
    assert driver.net.config.mac == STRANGER
    assert reach(driver, cable) == {"stranger", "all"}
    driver.reset()
    assert driver.net.config.mac == MAC
    driver.start()
    assert reach(driver, cable) == {"own", "all"}


@pytest.mark.parametrize("mac", [b"", STRANGER[:5], STRANGER + b"x", GROUP, BROADCAST, bytes(6)])
def test_what_is_no_address_of_one_station_is_refused(driver: NetDriver, mac: bytes) -> None:
    assert driver.control(MAC_CLASS, 1, mac) == CONTROL_ERR
    assert driver.net.config.mac == MAC


def test_vlan_tagged_frames_pass_by_their_id(driver: NetDriver, cable: Cable) -> None:
    assert not driver.passes(cable, frame(vlan=7))
    assert driver.passes(cable, frame()), "the filter is for tagged frames"
    assert driver.control(VLAN, 0, b"\7\0") == CONTROL_OK
    assert driver.passes(cable, frame(vlan=7))
    assert driver.passes(cable, frame(vlan=0xE007)), "the priority is no part of the id"
    assert not driver.passes(cable, frame(vlan=8))
    assert not driver.passes(cable, frame(STRANGER, vlan=7)), "the address counts as well"
    assert driver.control(VLAN, 1, b"\7\0") == CONTROL_OK
    assert not driver.passes(cable, frame(vlan=7))
    driver.control(RX, PROMISC, b"\1")
    assert driver.passes(cable, frame(vlan=7))


def test_the_vlan_filter_alone_filters_tagged_frames_only(make: Make, cable: Cable) -> None:
    driver = make(mask(F_MAC, F_CTRL_VQ, F_CTRL_VLAN))
    assert driver.passes(cable, frame(STRANGER))
    assert not driver.passes(cable, frame(STRANGER, vlan=3))


@pytest.mark.parametrize("data", [b"", b"\1", b"\1\0\0", b"\x00\x10", b"\xff\xff"])
def test_what_is_no_vlan_id_is_refused(driver: NetDriver, data: bytes) -> None:
    assert driver.control(VLAN, 0, data) == CONTROL_ERR


def test_pairs_are_set_within_their_limits(make: Make) -> None:
    driver = make(queues=4)
    for pairs in (1, 4, 2):
        assert driver.control(MQ, 0, pairs.to_bytes(2, "little")) == CONTROL_OK
    for data in (b"\0\0", b"\5\0", b"\0\x80", b"\xff\xff", b"", b"\1", b"\1\0\0"):
        assert driver.control(MQ, 0, data) == CONTROL_ERR
    assert driver.control(MQ, 1, b"\1\0") == CONTROL_ERR


@pytest.mark.parametrize(
    ("bit", "command_class", "command", "data"),
    [
        (F_CTRL_RX, RX, PROMISC, b"\1"),
        (F_CTRL_RX, MAC_CLASS, 0, table() + table()),
        (F_CTRL_RX_EXTRA, RX, ALLUNI, b"\1"),
        (F_CTRL_MAC_ADDR, MAC_CLASS, 1, STRANGER),
        (F_CTRL_VLAN, VLAN, 0, b"\1\0"),
        (21, ANNOUNCE, 0, b""),
        (F_MQ, MQ, 0, b"\1\0"),
    ],
)
def test_commands_need_their_feature(make: Make, bit: int, command_class: int, command: int, data: bytes) -> None:
    driver = make(queues=2)
    assert driver.control(command_class, command, data) == CONTROL_OK
    driver.reset()
    driver.start(driver.net.features & ~mask(bit))
    assert driver.control(command_class, command, data) == CONTROL_ERR


@pytest.mark.parametrize(
    ("command_class", "command", "data"),
    [(RX, 6, b"\1"), (RX, 0, b"\2"), (RX, 0, b""), (RX, 0, b"\1\0"), (MAC_CLASS, 2, b""), (VLAN, 2, b"\1\0"),
     (ANNOUNCE, 1, b""), (ANNOUNCE, 0, b"x"), (MQ, 2, b""), (5, 0, b""), (255, 255, b"")],
)  # fmt: skip
def test_commands_that_do_not_exist_are_refused(
    driver: NetDriver, command_class: int, command: int, data: bytes
) -> None:
    assert driver.control(command_class, command, data) == CONTROL_ERR
    assert driver.net.config.status == S_LINK_UP


@pytest.mark.parametrize("command", [b"", b"\0"])
def test_a_command_without_its_two_bytes_is_refused(driver: NetDriver, command: bytes) -> None:
    assert driver.send(2, command, [1]) == CONTROL_ERR


def test_a_command_without_room_for_its_ack_is_no_command(driver: NetDriver) -> None:
    with pytest.raises(RequestError, match="without an ack byte"):
        driver.send(2, b"\0\0\1", [])


def test_the_ack_is_the_first_writable_byte(driver: NetDriver) -> None:
    buffers = driver.submit(2, b"\0\0\1", [4])
    assert (buffers.written, buffers.whole) == (CONTROL_OK, CONTROL_OK + b"\xa5" * 3)


class Board:
    """What commands act on, without a device."""

    def set_mac(self, mac: bytes) -> None: ...

    def acknowledge_announce(self) -> None: ...

    def set_pairs(self, pairs: int) -> bool:
        return 1 <= pairs <= 4

    def set_guest_offloads(self, offloads: int) -> bool:
        return offloads & ~GUEST_OFFLOADS == 0


@given(st.lists(st.binary(max_size=60), max_size=20), st.binary(min_size=14, max_size=30))
def test_any_bytes_are_acked_and_leave_a_filter_that_works(commands: list[bytes], received: bytes) -> None:
    receive_filter = ReceiveFilter(mac=MAC, by_address=True, by_vlan=True)
    control = Control((1 << 64) - 1, receive_filter, Board())
    for command in commands:
        assert control.execute(command) in (0, 1)
    assert receive_filter.accepts(received) in (True, False)
