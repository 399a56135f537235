"""Threat 24: receive hoarding (XSA-392). A guest that gives no or useless buffers costs no memory."""

import os
import socket
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from devices.net import Net
from guest.net import NetDevice
from tests.devices.net_frames import MAC, Cable, NetDriver, frame
from tests.emulator.machines import Machine

FLOOD = 5000
FRAME = frame(payload=bytes(1400))
ALLOWED = 256 << 10  # bytes; one frame in two hundred kept would be more


@pytest.fixture
def cable(tmp_path: Path) -> Iterator[Cable]:
    cable = Cable(tmp_path)
    yield cable
    cable.close()


@pytest.fixture
def driver(cable: Cable) -> Iterator[NetDriver]:
    driver = NetDriver(Net(socket=cable.device_path, peer=cable.path, mac=MAC))
    yield driver
    driver.reset()
    driver.net.close()


def flood(driver: NetDriver, cable: Cable) -> int:
    """Sends the flood; the growth of memory in bytes."""
    for _ in range(10):
        cable.send(FRAME)
        driver.run()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(FLOOD):
            cable.send(FRAME)
            driver.run()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return after - before


def test_without_buffers_a_flood_is_dropped_and_counted(driver: NetDriver, cable: Cable) -> None:
    assert flood(driver, cable) < ALLOWED
    assert driver.net.counters == {"receive without buffers": FLOOD + 10}


def test_buffers_that_never_suffice_go_back_and_nothing_is_kept(driver: NetDriver, cable: Cable) -> None:
    given = [driver.give(0, [12]) for _ in range(100)]
    assert flood(driver, cable) < ALLOWED
    assert all(buffers.done and buffers.written == b"" for buffers in given)
    assert driver.net.counters == {"receive without buffers": FLOOD + 10}


def test_frames_that_are_filtered_are_not_kept(driver: NetDriver, cable: Cable) -> None:
    driver.control(0, 4, b"\1")  # no unicast
    assert flood(driver, cable) < ALLOWED
    assert driver.net.counters == {"receive filtered": FLOOD + 10}


def test_a_flood_that_is_over_leaves_a_device_that_works(driver: NetDriver, cable: Cable) -> None:
    flood(driver, cable)
    (buffers,) = driver.arrive(cable, FRAME)
    assert buffers.written[12:] == FRAME


def test_one_turn_of_the_loop_takes_a_bounded_number_of_frames(
    driver: NetDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest waits in the host's queue, which is bounded, while the device looks at its other work."""
    taken = 0
    packet = memoryview(bytearray(12) + FRAME)

    def endless(_: object) -> memoryview:
        nonlocal taken
        taken += 1
        return packet

    monkeypatch.setattr("devices.net_backends.SocketBackend.receive", endless)
    driver.net._receive()
    assert taken == 64
    packet, taken = memoryview(bytearray(12) + frame(payload=bytes(65000))), 0
    driver.net._receive()
    assert taken == 5, "256 KiB"


def test_a_start_under_a_flood_ends(driver: NetDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.reset()
    monkeypatch.setattr("devices.net_backends.SocketBackend.receive", lambda _: memoryview(bytearray(12) + FRAME))
    driver.start()


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_process_whose_guest_takes_nothing_stays_as_small_as_it_is(machine: Machine, tmp_path: Path) -> None:
    ours, peer = tmp_path / "ours", tmp_path / "peer"
    process = machine.run(f"net,socket={ours},peer={peer},mac={MAC.hex(':')}")
    with (
        NetDevice(machine.domain(), 0) as driver,  # gives its buffers once, and does not look at them
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wire,
    ):
        wire.bind(str(peer))
        wire.connect(str(ours))
        wire.settimeout(30)
        send(wire, 2000)  # past the buffers, and past what Python allocates once
        before = resident_bytes(process.pid)
        send(wire, 20_000)
        assert resident_bytes(process.pid) - before < 1 << 20  # of 28 MB that were sent
        assert driver.receive(timeout=1) == FRAME


def send(wire: socket.socket, count: int) -> None:
    """The host's queue is short: this goes as fast as the emulator takes frames from it."""
    for _ in range(count):
        wire.send(FRAME)
