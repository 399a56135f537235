"""A network card of a domU that its own kernel drives: stock virtio_net, and a tap on a bridge in dom0."""

from __future__ import annotations

import binascii
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from cpp_ring.store import Store
from emulator import toolstack
from emulator.machine import open_machine, parse_hypervisor
from tests.xen.domu import Domu
from tests.xen.linux_guest import GET_CONFIG, await_gone, await_path, module, shell, trace, traced
from tests.xen.serving import MIB, TWO_CPUS, Emulator, until

BRIDGE: Final = "rig-bridge"
TAP: Final = "rig-tap"
SECOND_TAP: Final = "rig-tap-2"
HERE: Final = "10.77.0.1"
THERE: Final = "10.77.0.2"
THERE_TOO: Final = "10.77.0.3"
MAC: Final = "02:00:00:77:00:02"
MTU: Final = 1400
PINGS: Final = 100
SIZE: Final = 64 * MIB
CARD: Final = "/sys/class/net/eth0"
OFFLOADS: Final = (0, 1, 2, 7, 8, 9, 11, 12, 13)
"""Feature bits that leave checksums and TCP's segments to the other side (virtio 1.3 section 5.1.3)."""

SET_RINGS: Final = """
import ctypes, fcntl, socket, struct, sys

def ethtool(command, rx=0, tx=0):
    ring = (ctypes.c_uint32 * 9)(command, 0, 0, 0, 0, rx, 0, 0, tx)  # struct ethtool_ringparam
    SIOCETHTOOL = 0x8946
    fcntl.ioctl(card, SIOCETHTOOL, struct.pack("16sP16x", b"eth0", ctypes.addressof(ring)))
    return ring[5], ring[8]

ETHTOOL_GRINGPARAM, ETHTOOL_SRINGPARAM = 0x10, 0x11
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as card:
    ethtool(ETHTOOL_SRINGPARAM, *map(int, sys.argv[1:]))
    print(*ethtool(ETHTOOL_GRINGPARAM))
"""
"""`ethtool -G eth0 rx RX tx TX`, and what the rings are then."""


def ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True)


@pytest.fixture(scope="module")
def bridge() -> Iterator[None]:
    ip(f"link add {BRIDGE} type bridge")
    ip(f"addr add {HERE}/24 dev {BRIDGE}")
    ip(f"tuntap add dev {TAP} mode tap")
    ip(f"link set {TAP} master {BRIDGE} up")
    ip(f"link set {BRIDGE} up")
    yield
    ip(f"link del {TAP}")
    ip(f"link del {BRIDGE}")


@pytest.fixture(scope="module")
def linux(domu: Domu, bridge: None) -> Iterator[Domu]:
    with module(domu), traced(domu, "vmsgx_request"):
        with Emulator(domu, f"net,tap={TAP},mac={MAC},mtu={MTU},queues=2"):
            await_path(domu, CARD)
            shell(domu, f"ip addr add {THERE}/24 dev eth0 && ip link set eth0 up")
            until(lambda: shell(domu, f"cat {CARD}/carrier") == "1", "no carrier")
            yield domu
        await_gone(domu, CARD)


def test_six_bytes_of_address_and_the_rest_of_the_config_space_cost_one_exchange(linux: Domu) -> None:
    assert sum(GET_CONFIG in line for line in trace(linux)) == 1


def test_address_and_mtu_are_those_of_the_device(linux: Domu) -> None:
    assert shell(linux, f"cat {CARD}/address {CARD}/mtu").split() == [MAC, str(MTU)]


def test_pings_of_all_sizes_come_back_both_ways(linux: Domu) -> None:
    output = shell(linux, f"ping -c {PINGS} -i 0.01 -s 1300 {HERE}")
    assert came_back(output) == PINGS, f"{output}\n{frames(linux)}"
    for size in (0, 1, 63, 1372):
        assert " 3 packets received" in shell(linux, f"ping -c 3 -i 0.01 -s {size} {HERE}")


def test_offloads_are_negotiated(linux: Domu) -> None:
    features = shell(linux, f"cat {CARD}/device/features")  # a digit for each bit
    assert [bit for bit in OFFLOADS if features[bit] != "1"] == []


def test_a_stream_each_way_is_whole_and_its_frames_are_of_many_segments(linux: Domu) -> None:
    with socket.create_server((HERE, 0)) as server:
        server.settimeout(60)
        port = server.getsockname()[1]
        program = f"""
import binascii, os, socket
def packets(way):
    with open(f"{CARD}/statistics/{{way}}_packets") as file:
        return int(file.read())
before = packets("rx")
with socket.create_connection(("{HERE}", {port})) as stream:
    taken = given = 0
    left = {SIZE}
    while left:
        part = stream.recv(1 << 18)
        assert part, left
        taken = binascii.crc32(part, taken)
        left -= len(part)
    received = packets("rx") - before
    before = packets("tx")
    for _ in range({SIZE // MIB}):
        part = os.urandom({MIB})
        given = binascii.crc32(part, given)
        stream.sendall(part)
    stream.shutdown(socket.SHUT_WR)
    assert stream.recv(1) == b""
print(taken, given, received, packets("tx") - before)
"""
        client = linux.popen(["python3", "-c", program])
        stream, _ = server.accept()
        given = taken = size = 0
        with stream:
            stream.settimeout(120)
            for _ in range(SIZE // MIB):
                part = os.urandom(MIB)
                given = binascii.crc32(part, given)
                stream.sendall(part)
            while part := stream.recv(1 << 18):
                taken = binascii.crc32(part, taken)
                size += len(part)
    seen, sent, *frames = map(int, client.read_all(60).decode().split())
    assert client.wait() == 0
    assert (seen, sent, SIZE) == (given, taken, size)
    assert max(frames) < SIZE // MTU


def frames(linux: Domu) -> str:
    """What each end counted."""
    command = "grep -H . {0}/statistics/*_packets {0}/statistics/*_dropped"
    here = subprocess.run(["sh", "-c", command.format(f"/sys/class/net/{TAP}")], capture_output=True, text=True)
    return here.stdout + shell(linux, command.format(CARD))


def came_back(pinged: str) -> int:
    """Of what `ping` sent."""
    match = re.search(r"(\d+) packets received", pinged)
    assert match, pinged
    return int(match[1])


def test_rings_change_their_size_while_frames_come_and_go(linux: Domu) -> None:
    """VIRTIO_F_RING_RESET: each queue stops alone, and goes on with a ring that the driver made meanwhile."""
    before = len(shell(linux, "dmesg").splitlines())
    pinging = linux.popen(["ping", "-q", "-i", "0.002", "-s", "1000", HERE])
    try:
        # In one of 16, virtio_net stops sending for good: it waits for room for a frame of the most pieces, 19.
        for rx, tx in ((32, 64), (64, 32), (32, 32), (128, 128)):
            setting = linux.popen(["python3", "-c", SET_RINGS, str(rx), str(tx)])
            assert setting.read_all(60).decode() == f"{rx} {tx}\n", setting.stderr
            # Frames in a queue that is reset are lost, and so is one that finds a ring of 32 full:
            # on a slow machine the flood beside fills it. Of a queue that stands still none comes back.
            assert came_back(linux.run(f"ping -c 20 -i 0.01 -s 1300 {HERE}").output) >= 1
    finally:
        pinging.send_signal(signal.SIGINT)
    assert came_back(pinging.read_all().decode()) >= 100
    assert came_back(shell(linux, f"ping -c 20 -i 0.01 -s 1300 {HERE}")) == 20
    log = shell(linux, "dmesg").splitlines()[before:]
    assert not [line for line in log if "virtio" in line or "Call Trace" in line], log


def test_the_guest_sees_the_cable_pulled_and_put_back(linux: Domu, dom0: Store) -> None:
    machine = open_machine(parse_hypervisor("xen"))
    for state, carrier in (("down", "0"), ("up", "1")):
        toolstack.update(machine, dom0, linux.domid, 0, {"link": state})
        until(lambda carrier=carrier: shell(linux, f"cat {CARD}/carrier") == carrier, f"the link is not {state}")  # type: ignore[misc]
    assert " 3 packets received" in shell(linux, f"ping -c 3 -i 0.01 {HERE}")


@TWO_CPUS
def test_a_card_has_a_queue_pair_and_a_disk_a_queue_for_each_cpu(bridge: None, tmp_path: Path) -> None:
    """The pair that a CPU sends on is the one that its answers come to."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(MIB))
    ip(f"tuntap add dev {SECOND_TAP} mode tap")
    ip(f"link set {SECOND_TAP} master {BRIDGE} up")
    try:
        with Domu("pv", vcpus=2, cpus="0-1") as domu, module(domu):
            specs = (f"net,tap={SECOND_TAP},queues=2", f"blk,path={image},queues=64")
            emulator = Emulator(domu, *specs)
            try:
                await_path(domu, CARD)
                await_path(domu, "/dev/vda")
                assert shell(domu, "cat /sys/block/vda/mq/*/cpu_list").split() == ["0", "1"]
                assert shell(domu, f"ls {CARD}/queues").split() == ["rx-0", "rx-1", "tx-0", "tx-1"]
                shell(domu, f"ip addr add {THERE_TOO}/24 dev eth0 && ip link set eth0 up")
                until(lambda: domu.run(f"ping -c 1 -W 1 {HERE}").code == 0, "nothing comes back")
                for cpu in range(2):
                    before = received(domu)
                    assert " 5 packets received" in shell(domu, f"taskset {1 << cpu:x} ping -c 5 -i 0.01 {HERE}")
                    after = received(domu)
                    assert after[cpu] > before[cpu], (cpu, before, after)
            finally:
                emulator.kill()
            with Emulator(domu, *specs):
                until(lambda: domu.run(f"ping -c 1 -W 1 {HERE}").code == 0, "nothing comes back any more")
                for cpu in range(2):
                    shell(domu, f"taskset {1 << cpu:x} dd if=/dev/zero of=/dev/vda bs=1M count=1 oflag=direct")
            await_gone(domu, CARD)
    finally:
        ip(f"link del {SECOND_TAP}")


def received(domu: Domu) -> list[int]:
    """Interrupts of each receive queue of two."""
    lines = [line.split() for line in shell(domu, "cat /proc/interrupts").splitlines()]
    counts = {line[-1]: sum(map(int, line[1:3])) for line in lines if line[-1].startswith("virtio-msg-0:")}
    return [counts[f"virtio-msg-0:{queue}"] for queue in (0, 2)]
