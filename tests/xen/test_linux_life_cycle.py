"""Devices of a domU's own kernel that come, go, die and come back: nothing acknowledged is lost, nothing is left."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cpp_ring.store import Store
from emulator import toolstack
from emulator.machine import Machine
from emulator.spec import parse
from tests.emulator.machines import Process
from tests.xen.domu import Domu
from tests.xen.linux_guest import (
    DRIVER,
    HWRNG,
    await_gone,
    await_path,
    deadline,
    entropy_sources,
    log,
    module,
    shell,
)
from tests.xen.serving import MIB, Emulator, nothing_left, until

BLOCK = 4096
CARD = "/sys/class/net/eth0"
UNSEEN = Path(__file__).with_name("models.py")


@pytest.fixture(scope="module")
def linux(domu: Domu) -> Iterator[Domu]:
    with module(domu) as loaded:
        yield loaded


WRITER = f"""
import os, sys
disk = os.open("/dev/vda", os.O_RDWR)
for turn in range(1 << 30):
    for block in range(64):
        data = b"%016d" % turn * ({BLOCK} // 16)
        os.pwrite(disk, data, block * {BLOCK})
        os.fsync(disk)
        # Acknowledged from here on.
        sys.stdout.write("%d %d\\n" % (block, turn))
        sys.stdout.flush()
"""


def test_what_was_acknowledged_survives_an_emulator_that_is_killed_again_and_again(
    linux: Domu, dom0: Store, machine: Machine, supervisor: Process, tmp_path: Path, cycles: int
) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(MIB))
    devid = toolstack.attach(dom0, 0, linux.domid, parse(f"blk,path={image}"))
    await_path(linux, "/dev/vda")
    writer = linux.popen(["python3", "-c", WRITER])
    acknowledged = [-1] * (MIB // BLOCK)
    lines = 0
    try:
        for kill in range(cycles):
            # Some writes between two kills, so that each hits a device at work.
            for _ in range(1 + 7 * kill % 20):
                line = writer.read_line(60.0)
                assert line, f"the writer ended: {writer.stderr.decode()}\n{log(linux)}"
                block, turn = map(int, line.split())
                acknowledged[block] = turn
                lines += 1
            pid = toolstack.emulator_pid(machine, linux.domid)
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            assert_written(image, acknowledged)
            until(lambda pid=pid: toolstack.emulator_pid(machine, linux.domid) not in (None, pid), "no new emulator")  # type: ignore[misc]
        for _ in range(64):  # of all blocks, what was on its way at the last kill
            line = writer.read_line(60.0)
            assert line, log(linux)
            block, turn = map(int, line.split())
            acknowledged[block] = turn
    finally:
        writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert_written(image, acknowledged)
    assert "I/O error" not in log(linux)
    digest = shell(linux, "dd if=/dev/vda bs=64k iflag=direct 2>/dev/null | sha256sum").split()[0]
    assert digest == hashlib.sha256(image.read_bytes()).hexdigest()
    toolstack.detach(machine, dom0, linux.domid, devid)
    await_gone(linux, "/dev/vda")
    until(lambda: nothing_left(dom0, linux.domid), "the device is still there")


def assert_written(image: Path, acknowledged: Sequence[int]) -> None:
    """`acknowledged`: the turn that each block has at least, -1 for none."""
    content = image.read_bytes()
    for block, turn in enumerate(acknowledged):
        found = int(content[block * BLOCK : block * BLOCK + 16] or b"0") if turn >= 0 else turn
        assert found >= turn, f"block {block} has {found}, {turn} was acknowledged"


def test_hot_plug_and_unplug_while_another_disk_is_under_load(
    linux: Domu, dom0: Store, machine: Machine, supervisor: Process, tmp_path: Path, cycles: int
) -> None:
    images = [tmp_path / "a.img", tmp_path / "b.img"]
    for path in images:
        path.write_bytes(os.urandom(MIB))
    first = toolstack.attach(dom0, 0, linux.domid, parse(f"blk,path={images[0]}"))
    await_path(linux, "/dev/vda")
    read = "dd if=/dev/vda of=/dev/null bs=64k iflag=direct 2>/dev/null"
    load = linux.popen(f"while {read}; do echo read; done; echo failed")
    try:
        for _ in range(cycles):
            second = toolstack.attach(dom0, 0, linux.domid, parse(f"blk,path={images[1]}"))
            await_path(linux, "/dev/vdb")
            # Unplugged in the middle of it.
            reader = linux.popen("dd if=/dev/vdb of=/dev/null bs=4k iflag=direct")
            toolstack.detach(machine, dom0, linux.domid, second)
            await_gone(linux, "/dev/vdb")
            reader.wait()
            until(lambda: len(toolstack.entries(machine, dom0)) == 1, "the device is still there")
    finally:
        load.send_signal(signal.SIGKILL)
    assert {*load.read_all(60.0).split()} == {b"read"}
    assert shell(linux, "ls /sys/bus/virtio/devices | wc -l") == "1"
    toolstack.detach(machine, dom0, linux.domid, first)
    await_gone(linux, "/dev/vda")


def in_flight(linux: Domu) -> bool:
    """Whether the disk has a request that is not answered."""
    return shell(linux, "cat /sys/block/vda/inflight").split() != ["0", "0"]


def test_a_disk_whose_emulator_is_gone_for_good_fails_its_requests_and_can_be_unplugged(
    linux: Domu, dom0: Store, machine: Machine, tmp_path: Path
) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(os.urandom(MIB))
    emulator = Emulator(linux, f"blk,path={image}")
    await_path(linux, "/dev/vda")
    read = "dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct"
    shell(linux, read)  # the kernel has looked for partitions; else dd would be kept at open, and find a disk of size 0
    emulator.kill()
    reader = linux.popen(read)
    until(lambda: in_flight(linux), "no request is on its way")
    toolstack.detach(machine, dom0, linux.domid, 0)
    assert reader.wait() != 0
    await_gone(linux, "/dev/vda")


def test_an_emulator_that_hangs_costs_its_disk_and_nothing_waits_for_it(linux: Domu, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(os.urandom(MIB))
    with deadline(linux, 500), Emulator(linux, f"blk,path={image}", "rng") as emulator:
        await_path(linux, "/dev/vda")
        # Else two devices wait for an answer.
        until(lambda: entropy_sources(linux) != [], "the other device has no driver yet")
        read = "dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct"
        shell(linux, read)
        emulator.signal(signal.SIGSTOP)
        reader = linux.popen(read)
        until(lambda: in_flight(linux), "no request is on its way")
        # Needs an answer, and has a deadline for it.
        linux.run("echo write through > /sys/block/vda/cache_type")
        assert reader.wait(60) != 0
        assert linux.run(read).code != 0
        assert sum("does not answer" in line for line in log(linux).splitlines()) == 1
        emulator.signal(signal.SIGCONT)
    await_gone(linux, "/dev/vda")


def test_a_disk_whose_emulator_hangs_can_be_taken_from_its_driver(linux: Domu, tmp_path: Path) -> None:
    """Its driver waits for a request in flight, with which no deadline goes as long as the device stays."""
    image = tmp_path / "disk.img"
    image.write_bytes(os.urandom(MIB))
    with Emulator(linux, f"blk,path={image}") as emulator:
        await_path(linux, "/dev/vda")
        emulator.signal(signal.SIGSTOP)
        reader = linux.popen("dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct")
        until(lambda: in_flight(linux), "no request is on its way")
        shell(linux, f"echo virtio-msg-0 > {DRIVER}/unbind")
        assert reader.wait(60) != 0
        assert "the backend completes nothing for a device that goes" in log(linux)
        await_gone(linux, "/dev/vda")
        emulator.signal(signal.SIGCONT)


def test_a_card_whose_emulator_hangs_can_be_taken_from_its_driver(linux: Domu, tmp_path: Path) -> None:
    """The driver takes its buffers back from rings that it has reset, which the device did not answer."""
    with deadline(linux, 300), Emulator(linux, f"net,socket={tmp_path}/card,peer={tmp_path}/nobody") as emulator:
        await_path(linux, CARD)
        shell(linux, "dmesg -c > /dev/null; ip link set eth0 up; ip addr add 10.78.0.1/24 dev eth0")
        emulator.signal(signal.SIGSTOP)
        linux.run("ping -c 2 -i 0.1 -W 1 10.78.0.2")  # on their way when the driver goes
        shell(linux, f"echo virtio-msg-0 > {DRIVER}/unbind")
        await_gone(linux, CARD)
        emulator.signal(signal.SIGCONT)
        assert not [line for line in log(linux).splitlines() if "BUG" in line or "list_" in line]


# What makes virtio_net wait awake for a control command, with bottom halves off. The domU has one CPU.
LISTEN_TO_ALL = "ip link set eth0 promisc on"


def deaf_card(domu: Domu, directory: Path) -> Emulator:
    emulator = Emulator(domu, f"{UNSEEN}:Deaf,socket={directory}/card,peer={directory}/nobody")
    await_path(domu, CARD)
    return emulator


SENDER = """
import socket
end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
end.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
for number in range(1 << 30):
    try:
        end.sendto(bytes(1000), ("10.78.0.255", 7))
    except OSError:  # the card is gone
        break
    if number % 50 == 49:
        print(flush=True)
"""


def test_a_card_can_be_unplugged_while_the_guest_sends(linux: Domu, tmp_path: Path) -> None:
    """virtio_net looks without end for what came back in a queue that was broken too early."""
    for turn in range(2):
        with Emulator(linux, f"net,socket={tmp_path}/{turn},peer={tmp_path}/nobody"):
            await_path(linux, CARD)
            shell(linux, "ip link set eth0 up; ip addr add 10.78.0.1/24 dev eth0")
            sender = linux.popen(["python3", "-c", SENDER])
            assert sender.read_line(60.0), sender.stderr
            assert sender.read_line(60.0), "it sends no longer"
        await_gone(linux, CARD)
        assert sender.wait() == 0


def test_a_control_command_that_is_not_answered_costs_the_card_and_not_the_guest(linux: Domu, tmp_path: Path) -> None:
    with deadline(linux, 300), deaf_card(linux, tmp_path):
        shell(linux, "ip link set eth0 up")
        until(lambda: "does not complete a request" in log(linux), "the card is not given up")
    await_gone(linux, CARD)


def test_a_control_command_whose_emulator_dies_fails_and_the_card_comes_back(
    linux: Domu, dom0: Store, machine: Machine, supervisor: Process, tmp_path: Path
) -> None:
    shell(linux, "dmesg -c > /dev/null")
    spec = f"{UNSEEN}:Deaf,socket={tmp_path}/card,peer={tmp_path}/nobody"
    devid = toolstack.attach(dom0, 0, linux.domid, parse(spec))
    await_path(linux, CARD)
    command = linux.popen(LISTEN_TO_ALL)
    pid = toolstack.emulator_pid(machine, linux.domid)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    command.wait(60)
    until(lambda: toolstack.emulator_pid(machine, linux.domid) not in (None, pid), "no new emulator")
    assert "is broken" not in shell(linux, "dmesg")
    toolstack.detach(machine, dom0, linux.domid, devid)
    await_gone(linux, CARD)


def test_two_domains_have_an_emulator_each(linux: Domu, other: Domu, tmp_path: Path) -> None:
    with module(other), contextlib.ExitStack() as running:
        digests = []
        for number, domu in enumerate((linux, other)):
            image = tmp_path / f"{number}.img"
            image.write_bytes(os.urandom(MIB))
            digests.append(hashlib.sha256(image.read_bytes()).hexdigest())
            running.enter_context(Emulator(domu, f"blk,path={image}"))
        for domu, digest in zip((linux, other), digests, strict=True):
            await_path(domu, "/dev/vda")
            assert shell(domu, "sha256sum < /dev/vda").split()[0] == digest
        running.close()
        await_gone(other, "/dev/vda")
    await_gone(linux, "/dev/vda")


def test_entropy_and_a_device_that_the_project_has_never_seen_reach_dev_hwrng(linux: Domu) -> None:
    with Emulator(linux, "rng", f"{UNSEEN}:Alphabet"):
        until(lambda: len(entropy_sources(linux)) == 2, "no entropy sources")
        contents = set()
        for name in entropy_sources(linux):
            shell(linux, f"echo {name} > {HWRNG}/rng_current")
            text = shell(linux, "dd if=/dev/hwrng bs=64 count=8 2>/dev/null | od -An -v -tx1 | tr -d ' \\n'")
            # The first bytes may be what the kernel had left of the other source.
            contents.add(bytes.fromhex(text)[-64:])
        assert len(contents) == 2
        assert sum(content.isalpha() and content.islower() for content in contents) == 1, contents


def test_a_driver_domain_serves_a_disk(driver: Domu, other: Domu, dom0: Store, machine: Machine) -> None:
    with module(other) as served:
        elsewhere = machine.of_backend(driver.domid)
        shell(driver, "dd if=/dev/urandom of=/disk.img bs=1M count=4 2>&1")
        supervisor = driver.popen(["virtio-dm", "supervise", "--hypervisor", "xen"])
        devid = toolstack.attach(dom0, driver.domid, served.domid, parse("blk,path=/disk.img"))
        await_path(served, "/dev/vda")
        shell(served, "dd if=/dev/urandom of=/dev/vda bs=64k count=16 conv=fsync 2>&1")
        assert shell(served, "sha256sum < /dev/vda") == shell(driver, "sha256sum < /disk.img")
        toolstack.detach(elsewhere, dom0, served.domid, devid)
        await_gone(served, "/dev/vda")
        supervisor.send_signal(signal.SIGTERM)
        assert supervisor.wait() == 0, supervisor.stderr
