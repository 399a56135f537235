"""Devices, drivers and emulators that come, go and die on a real Xen."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
from pathlib import Path

import pytest

from cpp_ring.store import Store
from emulator import toolstack
from emulator.machine import Machine
from emulator.spec import parse
from emulator.store_paths import State
from tests import forked
from tests.emulator.machines import Process
from tests.xen.domu import Domu, GuestAgent
from tests.xen.serving import PATIENCE, SECTOR, TWO_CPUS, Emulator, await_state, nothing_left, until

CYCLES = 50
BOTH = pytest.mark.parametrize("domu", ["pv"], indirect=True)
"""`domu` is PV and `other` PVH: once is enough for a test of both."""
NOBODY = 65534


def test_hot_plug_while_the_guest_uses_another_device(
    domu: Domu, guest: GuestAgent, dom0: Store, machine: Machine, supervisor: Process
) -> None:
    first = toolstack.attach(dom0, 0, domu.domid, parse("rng"))
    assert toolstack.await_ready(machine, dom0, domu.domid, first)
    guest("connect", dev=first)
    for _ in range(2):
        second = toolstack.attach(dom0, 0, domu.domid, parse("rng"))
        assert toolstack.await_ready(machine, dom0, domu.domid, second)
        guest("connect", dev=second)
        assert len(guest("rng", dev=second, size=16)["data"]) == 32
        toolstack.detach(machine, dom0, domu.domid, second, wait=False)
        assert guest("wait_gone", dev=second, timeout=20.0)["gone"]
        until(lambda: len(toolstack.entries(machine, dom0)) == 1, "the device is still there")
        assert len(guest("rng", dev=first, size=16)["data"]) == 32
    guest("close", dev=first)
    toolstack.detach(machine, dom0, domu.domid, first)
    supervisor.await_line("ended (exit code 0)")


def test_an_emulator_that_is_killed_is_started_again_and_nothing_is_lost(
    domu: Domu, guest: GuestAgent, dom0: Store, machine: Machine, supervisor: Process, image: Path
) -> None:
    devid = toolstack.attach(dom0, 0, domu.domid, parse(f"blk,path={image}"))
    assert toolstack.await_ready(machine, dom0, domu.domid, devid)
    guest("connect", dev=devid)
    for turn in range(2):
        data = os.urandom(64 * SECTOR)
        guest("blk_write", dev=devid, sector=turn * 64, data=base64.b64encode(data).decode())
        guest("blk_flush", dev=devid)
        pid = toolstack.emulator_pid(machine, domu.domid)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        back = guest("blk_read", dev=devid, sector=turn * 64, count=64)["data"]
        assert base64.b64decode(back) == data
        assert image.read_bytes()[turn * 64 * SECTOR : (turn + 1) * 64 * SECTOR] == data
    guest("close", dev=devid)
    toolstack.detach(machine, dom0, domu.domid, devid)
    until(lambda: nothing_left(dom0, domu.domid), "the device is still there")


def test_a_guest_that_is_killed_leaves_its_device_ready_for_the_next_one(
    domu: Domu, guest: GuestAgent, dom0: Store
) -> None:
    with Emulator(domu, "rng") as emulator:
        killed = domu.agent()
        killed("connect", dev=0)
        assert emulator.mappings() > 0
        killed.process.send_signal(signal.SIGKILL)
        emulator.await_line("frontend-gone")  # its live byte, which the kernel of the domU cleared
        await_state(dom0, domu.domid, State.INIT_WAIT)
        assert emulator.mappings() == 0
        guest("connect", dev=0)
        assert len(guest("rng", dev=0, size=16)["data"]) == 32
        guest("close", dev=0)


@TWO_CPUS  # where each of them takes a third of the time
@BOTH
def test_connections_that_come_and_go_leave_no_grant_mapped_and_no_descriptor_open(domu: Domu, other: Domu) -> None:
    come_and_go(domu)
    come_and_go(other)


def come_and_go(domu: Domu) -> None:
    with Emulator(domu, "rng") as emulator, domu.agent() as guest:
        descriptors = 0
        held = guest("held")
        for cycle in range(CYCLES):
            guest("connect", dev=0)
            assert len(guest("rng", dev=0, size=8)["data"]) == 16
            guest("close", dev=0)
            until(lambda: emulator.mappings() == 0, "grants are still mapped")
            if cycle == 0:
                descriptors = emulator.descriptors()
        until(lambda: emulator.descriptors() == descriptors, "descriptors are still open")
        assert guest("held") == held


def test_what_a_dead_domain_left_without_an_emulator_is_removed_by_the_supervisor(
    dom0: Store, supervisor: Process
) -> None:
    dom0.write("/local/domain/0/backend/virtio-msg/31999/0/frontend-id", "31999")
    until(lambda: nothing_left(dom0, 31999), "the nodes are still there")


@BOTH
def test_two_domains_have_an_emulator_each_and_exchange_frames(
    domu: Domu, guest: GuestAgent, other: Domu, tmp_path: Path
) -> None:
    ends = [tmp_path / "a", tmp_path / "b"]

    def card(number: int) -> str:
        return f"net,socket={ends[number]},peer={ends[1 - number]},mac=02:00:00:00:00:0{number}"

    with (
        Emulator(domu, card(0)) as one,
        Emulator(other, card(1)) as two,
        other.agent() as right,
    ):
        assert one.pid != two.pid
        left = guest
        left("connect", dev=0)
        right("connect", dev=0)
        for number in range(10):
            frame = "020000000001" + "020000000000" + "88b5" + f"{number:02x}" * 80
            left("net_send", dev=0, frame=frame)
            assert right("net_receive", dev=0, timeout=20.0)["frame"] == frame
            back = "020000000000" + "020000000001" + "88b5" + f"{number:02x}" * 200
            right("net_send", dev=0, frame=back)
            assert left("net_receive", dev=0, timeout=20.0)["frame"] == back
        left("close", dev=0)


@pytest.mark.parametrize(
    ("command", "code", "line"),
    [
        ("run --domid 31998", 5, "no domain 31998 on xen; `xl list` shows those there are"),
        ("run --domid 1 --device nonsense", 3, "no device 'nonsense'"),
        ("detach 31998 0", 5, "no domain 31998"),
        ("attach --backend 31997 1 rng", 5, "no domain 31997 on xen, which --backend names"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_a_code(command: str, code: int, line: str) -> None:
    done = forked.run(command.split(), PATIENCE)
    assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done.stderr
    assert line in done.stderr


def test_somebody_else_than_root_is_told_that_only_root_may() -> None:
    done = subprocess.run(["virtio-dm", "list"], capture_output=True, text=True, user=NOBODY, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (10, 1), done.stderr
    assert "only root may use it" in done.stderr
