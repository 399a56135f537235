"""Devices and domains that come, go and die on a real Xen, and what is left behind: nothing."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cpp_ring.store import Store
from emulator import toolstack
from emulator.machine import Machine, open_machine, parse_hypervisor
from emulator.spec import parse
from emulator.store_paths import State, frontend_dir, frontends_dir
from tests.emulator.machines import Process
from tests.xen.domu import Domu, domains, xl
from tests.xen.serving import MIB, SECTOR, Emulator, await_state, nothing_left, until

CYCLES = 50
NOBODY = 65534


@pytest.fixture(scope="module")
def machine() -> Machine:
    return open_machine(parse_hypervisor("xen"))


@pytest.fixture
def supervisor() -> Iterator[Process]:
    process = Process("supervise", "--hypervisor", "xen")
    process.await_line("watching the domains")
    yield process
    assert process.stop() == 0, process.lines


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(MIB))
    return path


def test_hot_plug_while_the_guest_uses_another_device(
    domu: Domu, dom0: Store, machine: Machine, supervisor: Process
) -> None:
    first = toolstack.attach(dom0, 0, domu.domid, parse("rng"))
    assert toolstack.await_ready(machine, dom0, domu.domid, first)
    with domu.agent() as guest:
        guest("connect", dev=first)
        for _ in range(3):
            second = toolstack.attach(dom0, 0, domu.domid, parse("rng"))
            assert toolstack.await_ready(machine, dom0, domu.domid, second)
            guest("connect", dev=second)
            assert len(guest("rng", dev=second, size=16)["data"]) == 32
            toolstack.detach(machine, dom0, domu.domid, second, wait=False)
            assert guest("wait_gone", dev=second, timeout=20.0)["gone"]
            until(lambda: len(toolstack.entries(machine, dom0)) == 1, "the device is still there")
            assert len(guest("rng", dev=first, size=16)["data"]) == 32
    toolstack.detach(machine, dom0, domu.domid, first)
    supervisor.await_line("ended (exit code 0)")


def test_an_emulator_that_is_killed_is_started_again_and_nothing_is_lost(
    domu: Domu, dom0: Store, machine: Machine, supervisor: Process, image: Path
) -> None:
    devid = toolstack.attach(dom0, 0, domu.domid, parse(f"blk,path={image}"))
    assert toolstack.await_ready(machine, dom0, domu.domid, devid)
    with domu.agent() as guest:
        guest("connect", dev=devid)
        for turn in range(3):
            data = os.urandom(64 * SECTOR)
            guest("blk_write", dev=devid, sector=turn * 64, data=base64.b64encode(data).decode())
            guest("blk_flush", dev=devid)
            pid = toolstack.emulator_pid(machine, domu.domid)
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            back = guest("blk_read", dev=devid, sector=turn * 64, count=64)["data"]
            assert base64.b64decode(back) == data
            assert image.read_bytes()[turn * 64 * SECTOR : (turn + 1) * 64 * SECTOR] == data
    toolstack.detach(machine, dom0, domu.domid, devid)
    until(lambda: nothing_left(dom0, domu.domid), "the device is still there")


def test_a_guest_that_is_killed_leaves_its_device_ready_for_the_next_one(domu: Domu, dom0: Store) -> None:
    with Emulator(domu, "rng") as emulator:
        guest = domu.agent()
        guest("connect", dev=0)
        assert emulator.mappings() > 0
        guest.process.send_signal(signal.SIGKILL)
        emulator.await_line("frontend-gone")  # its live byte, which the kernel of the domU cleared
        await_state(dom0, domu.domid, State.INIT_WAIT)
        assert emulator.mappings() == 0
        with domu.agent() as successor:
            successor("connect", dev=0)
            assert len(successor("rng", dev=0, size=16)["data"]) == 32


def test_connections_that_come_and_go_leave_no_grant_mapped_and_no_descriptor_open(domu: Domu) -> None:
    with Emulator(domu, "rng") as emulator, domu.agent() as guest:
        descriptors = 0
        for cycle in range(CYCLES):
            guest("connect", dev=0)
            assert len(guest("rng", dev=0, size=8)["data"]) == 16
            guest("close", dev=0)
            until(lambda: emulator.mappings() == 0, "grants are still mapped")
            if cycle == 0:
                descriptors = emulator.descriptors()
        until(lambda: emulator.descriptors() == descriptors, "descriptors are still open")


def test_a_domain_that_is_destroyed_in_mid_request_leaves_nothing(victim: Domu, dom0: Store, image: Path) -> None:
    emulator = Emulator(victim, f"blk,path={image}", "rng")
    guest = victim.agent()
    guest("connect", dev=0)
    guest("connect", dev=1)
    guest.send("config_race", dev=0, offset=32, values=["00", "01"], count=1_000_000)
    time.sleep(0.2)  # it is in the middle of it, whenever that is
    domid = victim.domid
    victim.destroy()
    assert emulator.wait() == 0, emulator.lines
    assert any("is gone" in line for line in emulator.lines)
    assert nothing_left(dom0, domid)
    assert dom0.read_optional(frontends_dir(domid)) is None
    # A grant that was still mapped would leave a domain without a name.
    until(lambda: not {victim.name, "(null)"} & set(domains()), f"{domains()}")


def test_what_a_dead_domain_left_without_an_emulator_is_removed_by_the_supervisor(
    dom0: Store, supervisor: Process
) -> None:
    dom0.write("/local/domain/0/backend/virtio-msg/31999/0/frontend-id", "31999")
    until(lambda: nothing_left(dom0, 31999), "the nodes are still there")


def test_two_domains_have_an_emulator_each_and_exchange_frames(domu: Domu, other: Domu, tmp_path: Path) -> None:
    ends = [tmp_path / "a", tmp_path / "b"]

    def card(number: int) -> str:
        return f"net,socket={ends[number]},peer={ends[1 - number]},mac=02:00:00:00:00:0{number}"

    with (
        Emulator(domu, card(0)) as one,
        Emulator(other, card(1)) as two,
        domu.agent() as left,
        other.agent() as right,
    ):
        assert one.pid != two.pid
        left("connect", dev=0)
        right("connect", dev=0)
        for number in range(10):
            frame = "020000000001" + "020000000000" + "88b5" + f"{number:02x}" * 80
            left("net_send", dev=0, frame=frame)
            assert right("net_receive", dev=0, timeout=20.0)["frame"] == frame
            back = "020000000000" + "020000000001" + "88b5" + f"{number:02x}" * 200
            right("net_send", dev=0, frame=back)
            assert left("net_receive", dev=0, timeout=20.0)["frame"] == back


def test_a_driver_domain_serves_another_one_until_that_ends(dom0: Store, machine: Machine) -> None:
    with (
        Domu("pvh", name="driver", emulator=True, extra=["driver_domain=1"]) as driver,
        Domu("pv", name="served") as served,
    ):
        elsewhere = machine.of_backend(driver.domid)
        assert driver.run("dd if=/dev/urandom of=/disk.img bs=1M count=1").code == 0
        supervisor = driver.popen(["virtio-dm", "supervise", "--hypervisor", "xen"])
        attach = ["virtio-dm", "attach", "--backend", str(driver.domid), str(served.domid), "blk,path=/disk.img"]
        devid = int(subprocess.run(attach, capture_output=True, text=True, check=True).stdout)
        wanted = driver.run("sha256sum < /disk.img").output.split()[0]
        with served.agent() as guest:
            guest("connect", dev=devid)
            assert guest("blk_sha256", dev=devid)["sha256"] == wanted
        toolstack.detach(elsewhere, dom0, served.domid, devid)
        assert nothing_left(dom0, served.domid, backend=driver.domid)
        assert dom0.read_optional(frontend_dir(served.domid, devid)) is None
        devid = toolstack.attach(dom0, driver.domid, served.domid, parse("rng"))
        assert toolstack.await_ready(elsewhere, dom0, served.domid, devid)
        served.destroy()
        until(lambda: nothing_left(dom0, served.domid, backend=driver.domid), "the dead domain's device is still there")
        supervisor.send_signal(signal.SIGTERM)
        assert supervisor.wait() == 0, supervisor.stderr


def test_a_domain_that_reboots_is_another_one(dom0: Store, machine: Machine, supervisor: Process) -> None:
    with Domu("pv", name="rebooter", extra=['on_reboot="restart"']) as domu:
        before = domu.domid
        assert toolstack.await_ready(machine, dom0, before, toolstack.attach(dom0, 0, before, parse("rng")))
        guest = domu.agent()
        guest("connect", dev=0)
        xl("reboot", domu.name)
        until(lambda: nothing_left(dom0, before), "the device of the domain that was is still there")
        until(lambda: domains().get(domu.name) is not None and xl("domid", domu.name) != str(before), "it is not back")
        domu.connect()
        assert toolstack.await_ready(machine, dom0, domu.domid, toolstack.attach(dom0, 0, domu.domid, parse("rng")))
        with domu.agent() as again:
            again("connect", dev=0)
            assert len(again("rng", dev=0, size=16)["data"]) == 32


@pytest.mark.parametrize(
    ("command", "user", "code", "line"),
    [
        ("run --domid 31998", 0, 5, "no domain 31998 on xen; `xl list` shows those there are"),
        ("run --domid 1 --device nonsense", 0, 3, "no device 'nonsense'"),
        ("detach 31998 0", 0, 5, "no domain 31998"),
        ("attach --backend 31997 1 rng", 0, 5, "no domain 31997 on xen, which --backend names"),
        ("list", NOBODY, 10, "only root may use it"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_a_code(command: str, user: int, code: int, line: str) -> None:
    done = subprocess.run(["virtio-dm", *command.split()], capture_output=True, text=True, user=user, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done.stderr
    assert line in done.stderr
