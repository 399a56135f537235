"""Frames go from guest to guest as they were sent, and what the control queue set up survives a restart."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from guest.device import bits
from guest.errors import ConfigRefused, Unsupported
from guest.hypervisor import Domain, open_local
from guest.net import CTRL_VLAN, CTRL_VQ, MQ, MRG_RXBUF, MTU, SPEED_DUPLEX, NetDevice, RxMode
from tests.devices.net_frames import checksum, header, tcp4
from tests.devices.net_taps import ETH_IP, host_of, tap_interface
from tests.guest.conftest import Emulator, StartEmulator

Toolstack = Callable[..., None]
MACS = (bytes.fromhex("020000000001"), bytes.fromhex("020000000002"))


def frame(to: bytes, sender: bytes, size: int, seed: int = 0) -> bytes:
    return to + sender + b"\x88\xb5" + random.Random(seed).randbytes(size - 14)


class Cable:
    """A network device in each of domains 1 and 2, and a cable between them."""

    def __init__(self, emulator: StartEmulator, directory: Path, sockets: Path, options: str = "") -> None:
        self.emulator = emulator
        self.domains = [open_local(directory, domid) for domid in (1, 2)]
        ends = (sockets / "1", sockets / "2")
        self.specs = [f"net,socket={ends[i]},peer={ends[1 - i]},mac={MACS[i].hex(':')}{options}" for i in range(2)]
        self.emulators: list[Emulator] = [emulator(spec, domid=i + 1) for i, spec in enumerate(self.specs)]

    def connect(self, refuse: int = 0) -> tuple[NetDevice, NetDevice]:
        return NetDevice(self.domains[0], 0, refuse=refuse), NetDevice(self.domains[1], 0, refuse=refuse)


@pytest.fixture
def cable(emulator: StartEmulator, directory: Path, tmp_path: Path) -> Cable:
    return Cable(emulator, directory, tmp_path)


def test_config_space_is_what_the_host_said(emulator: StartEmulator, domain: Domain, tmp_path: Path) -> None:
    ends = f"socket={tmp_path / 'a'},peer={tmp_path / 'b'}"
    emulator(f"net,{ends},mac=02:00:00:00:00:07,mtu=9000,speed=10000,link=down")
    with NetDevice(domain, 0) as nic:
        assert nic.mac == bytes.fromhex("020000000007")
        assert nic.mtu == 9000
        assert nic.speed == (10000, 1)
        assert not nic.link_up
        assert not nic.announce_wanted
    with NetDevice(domain, 0, refuse=bits(MTU, SPEED_DUPLEX)) as nic:
        assert nic.mtu == 1500
        assert nic.speed is None


def test_a_speed_that_the_host_does_not_say_is_none(emulator: StartEmulator, domain: Domain, tmp_path: Path) -> None:
    emulator(f"net,socket={tmp_path / 'a'},peer={tmp_path / 'b'}")
    with NetDevice(domain, 0) as nic:
        assert nic.has(SPEED_DUPLEX)
        assert nic.speed is None


@pytest.mark.root
def test_a_tap_with_offloads_gives_this_driver_whole_frames(emulator: StartEmulator, domain: Domain) -> None:
    with tap_interface() as interface:
        emulator(f"net,tap={interface},mac={MACS[0].hex(':')}")
        with NetDevice(domain, 0) as nic, host_of(interface, ETH_IP) as host:
            data = tcp4(MACS[0], random.Random(0).randbytes(4000))
            host.send(header(1, 1, 54, 1446, 34, 16)[:10] + data)
            frames: list[bytes] = []
            while len(frames) < 3:
                received = nic.receive(timeout=10)
                assert received is not None
                if received[12:14] == b"\x08\x00":
                    frames.append(received)
            assert b"".join(each[54:] for each in frames) == data[54:]
            for each in frames:
                assert checksum(each[26:34] + struct.pack("!HH", 6, len(each) - 34) + each[34:]) == 0
            sent = tcp4(MACS[1], bytes(1000), sender=MACS[0])
            nic.send(sent)
            assert host.recv(1 << 17) == bytes(10) + sent


@pytest.mark.parametrize("refuse", [0, bits(MRG_RXBUF), bits(CTRL_VQ)], ids=["all", "not mergeable", "no control"])
def test_frames_go_both_ways_unchanged_and_in_order(cable: Cable, refuse: int) -> None:
    one, two = cable.connect(refuse)
    for seed, size in enumerate([60, 64, 1000, 1514, 14] * 8):
        for sender, receiver, to, by in ((one, two, MACS[1], MACS[0]), (two, one, MACS[0], MACS[1])):
            sent = frame(to, by, size, seed)
            sender.send(sent)
            assert receiver.receive(10.0) == sent
    assert one.receive(0.0) is None
    one.close()
    two.close()


@pytest.mark.parametrize("refuse", [0, bits(MRG_RXBUF)], ids=["mergeable", "not mergeable"])
def test_frames_larger_than_a_buffer_arrive_whole(
    emulator: StartEmulator, directory: Path, tmp_path: Path, refuse: int
) -> None:
    one, two = Cable(emulator, directory, tmp_path, ",mtu=9000").connect(refuse)
    for seed, size in enumerate([9014, 2036, 2037, 2048, 4084, 4085, 60] * 10):
        sent = frame(MACS[1], MACS[0], size, seed)
        one.send(sent)
        assert two.receive(10.0) == sent
    one.close()
    two.close()


def test_more_frames_than_buffers_are_sent(cable: Cable) -> None:
    one, two = cable.connect()
    for seed in range(2000):
        one.send(frame(MACS[1], MACS[0], 1514, seed))
    one.flush()
    with pytest.raises(ValueError, match="13 bytes"):
        one.send(bytes(13))
    with pytest.raises(ValueError, match="65537 bytes"):
        one.send(bytes(65537))
    one.close()
    two.close()


def test_the_receive_filter_does_what_it_is_told(cable: Cable) -> None:
    one, two = cable.connect()
    stranger = frame(bytes.fromhex("020000000099"), MACS[0], 60)
    ours = frame(MACS[1], MACS[0], 60)

    def arrives(sent: bytes) -> bool:
        one.send(sent)
        one.send(ours)  # comes after it, if it comes
        first = two.receive(10.0)
        if first == sent:
            assert two.receive(10.0) == ours
        return first == sent

    assert arrives(stranger), "until the driver says what it wants"
    two.set_rx_mode(RxMode.PROMISC, False)
    assert not arrives(stranger)
    two.set_rx_mode(RxMode.PROMISC, True)
    assert arrives(stranger)
    two.set_rx_mode(RxMode.PROMISC, False)
    two.set_mac_table([stranger[:6]], [])
    assert arrives(stranger)
    two.set_mac_table([], [])
    two.set_mac(stranger[:6])
    assert two.mac == stranger[:6]
    assert two.config_read(0, 6) == stranger[:6]
    with pytest.raises(ConfigRefused):
        two.set_mac(b"\xff" * 6)
    two.set_rx_mode(RxMode.NOBCAST, False)
    one.close()
    two.close()


def test_vlans_are_added_and_removed(cable: Cable) -> None:
    one, two = cable.connect()
    tagged = MACS[1] + MACS[0] + b"\x81\x00\x00\x07\x88\xb5" + bytes(46)
    two.set_rx_mode(RxMode.PROMISC, False)
    two.add_vlan(7)
    one.send(tagged)
    assert two.receive(10.0) == tagged
    two.remove_vlan(7)
    one.send(tagged)
    plain = frame(MACS[1], MACS[0], 60)
    one.send(plain)
    assert two.receive(10.0) == plain
    one.close()
    two.close()


def test_commands_of_features_that_were_not_negotiated_are_refused_here(cable: Cable) -> None:
    with NetDevice(cable.domains[0], 0, refuse=bits(CTRL_VLAN, MQ)) as nic, pytest.raises(Unsupported):
        nic.add_vlan(1)
    with NetDevice(cable.domains[0], 0, refuse=bits(CTRL_VQ)) as nic:
        calls: list[Callable[[], object]] = [
            lambda: nic.set_rx_mode(RxMode.PROMISC, True),
            lambda: nic.set_mac(MACS[0]),
            lambda: nic.set_pairs(2),
            nic.announced,
        ]
        for call in calls:
            with pytest.raises(Unsupported):
                call()


def test_the_link_and_announcements_are_seen(cable: Cable, toolstack: Toolstack) -> None:
    one, two = cable.connect()
    toolstack("update", "1", "0", "link=down")
    assert one.wait_config_change(20.0)
    assert not one.link_up
    toolstack("update", "1", "0", "link=up", "announce=on")
    while not one.announce_wanted:
        assert one.wait_config_change(20.0)
    assert one.link_up
    one.announced()
    assert not one.announce_wanted
    one.close()
    two.close()


def test_frames_and_settings_survive_a_restart_of_the_emulator(cable: Cable) -> None:
    one, two = cable.connect()
    sent = frame(bytes.fromhex("020000000099"), MACS[0], 60)
    two.set_mac(sent[:6])
    two.add_vlan(3)
    one.send(sent)
    assert two.receive(10.0) == sent
    cable.emulators[1].kill()
    cable.emulator(cable.specs[1], domid=2)
    two.recover()
    assert two.mac == sent[:6]
    one.send(sent)
    assert two.receive(10.0) == sent
    two.send(frame(MACS[0], two.mac, 60))
    assert one.receive(10.0) == frame(MACS[0], two.mac, 60)
    one.close()
    two.close()


def test_a_receiver_that_waits_gets_over_a_restart(cable: Cable) -> None:
    one, two = cable.connect()
    cable.emulators[1].kill()
    cable.emulator(cable.specs[1], domid=2)
    assert two.receive(0.5) is None
    sent = frame(MACS[1], MACS[0], 60)
    for _ in range(20):
        one.send(sent)  # lost while there is no device
        if two.receive(0.5) == sent:
            break
    else:
        pytest.fail("no frame arrives after the restart")
    one.close()
    two.close()


def test_every_pair_of_queues_is_used(emulator: StartEmulator, directory: Path, tmp_path: Path) -> None:
    one, two = Cable(emulator, directory, tmp_path, ",queues=4").connect()
    assert one.max_pairs == 4
    assert len(one.queues) == 9
    one.set_pairs(4)
    two.set_pairs(4)
    with pytest.raises(ConfigRefused):
        one.set_pairs(5)
    for pair in range(4):
        sent = frame(MACS[1], MACS[0], 60, pair)
        one.send(sent, pair)
        one.flush(pair)
        deadline = time.monotonic() + 10.0
        found = None
        while found is None and time.monotonic() < deadline:
            found = next((received for pair in range(4) if (received := two.receive(0.02, pair))), None)
        assert found == sent
    one.close()
    two.close()
