"""Domains that reboot, shut down and die on a real Xen, and what is left behind: nothing."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from cpp_ring.store import Store
from emulator import toolstack
from emulator.machine import Machine
from emulator.spec import parse
from emulator.store_paths import frontend_dir, frontends_dir
from tests.emulator.machines import Process
from tests.xen.domu import Domu, domains, xl
from tests.xen.serving import MODELS, Emulator, command, nothing_left, until


@pytest.mark.last
def test_a_driver_domain_serves_another_one_until_that_ends(driver: Domu, dom0: Store, machine: Machine) -> None:
    with Domu("pv") as served:
        elsewhere = machine.of_backend(driver.domid)
        assert driver.run("dd if=/dev/urandom of=/disk.img bs=1M count=1").code == 0
        supervisor = driver.popen(["virtio-dm", "supervise", "--hypervisor", "xen"])
        devid = int(command("attach", "--backend", str(driver.domid), str(served.domid), "blk,path=/disk.img"))
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
        until(lambda: not {served.name, "(null)"} & set(domains()), f"{domains()}")


@pytest.mark.last
def test_a_driver_domain_that_dies_costs_its_devices_and_nothing_else(
    driver: Domu, other: Domu, dom0: Store, machine: Machine
) -> None:
    elsewhere = machine.of_backend(driver.domid)
    driver.popen(["virtio-dm", "run", "--hypervisor", "xen", "--domid", str(other.domid)])
    devids = [toolstack.attach(dom0, driver.domid, other.domid, parse("rng")) for _ in range(2)]
    with other.agent() as guest:
        for devid in devids:
            assert toolstack.await_ready(elsewhere, dom0, other.domid, devid)
            guest("connect", dev=devid)
        xl("pause", driver.name)
        guest.send("rng", dev=devids[0], size=16)  # which nobody answers any more
        driver.destroy()
        answer = guest.receive()
        assert (answer["ok"], answer["kind"]) == (False, "DeviceGone"), answer
        assert guest("wait_gone", dev=devids[1], timeout=20.0)["gone"]
        until(lambda: not {driver.name, "(null)"} & set(domains()), f"{domains()}")
        assert dom0.read_optional(f"/local/domain/{driver.domid}") is None
        assert json.loads(command("list", "--json")) == []
        assert toolstack.entries(elsewhere, dom0) == []
        for devid in devids:
            assert dom0.read_optional(f"{frontend_dir(other.domid, devid)}/backend") is not None
            command("detach", "--backend", str(driver.domid), str(other.domid), str(devid))
            assert dom0.read_optional(frontend_dir(other.domid, devid)) is None
        with Emulator(other, "rng"):
            guest("connect", dev=0)
            assert len(guest("rng", dev=0, size=16)["data"]) == 32
            guest("close", dev=0)


@pytest.mark.last
@pytest.mark.parametrize("domu", ["pv"], indirect=True)
def test_a_domain_that_reboots_is_another_one(domu: Domu, dom0: Store, machine: Machine, supervisor: Process) -> None:
    before = domu.domid
    assert toolstack.await_ready(machine, dom0, before, toolstack.attach(dom0, 0, before, parse("rng")))
    domu.agent()("connect", dev=0)
    xl("reboot", domu.name)
    until(lambda: nothing_left(dom0, before), "the device of the domain that was is still there")
    until(lambda: domains().get(domu.name) is not None and xl("domid", domu.name) != str(before), "it is not back")
    domu.connect()
    devid = toolstack.attach(dom0, 0, domu.domid, parse("rng"))
    assert toolstack.await_ready(machine, dom0, domu.domid, devid)
    with domu.agent() as again:
        again("connect", dev=devid)
        assert len(again("rng", dev=devid, size=16)["data"]) == 32
    toolstack.detach(machine, dom0, domu.domid, devid)
    supervisor.await_line("ended (exit code 0)", 2)


@pytest.mark.last
def test_a_domain_that_is_destroyed_in_mid_request_leaves_nothing(
    domu: Domu, dom0: Store, image: Path, tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    emulator = Emulator(domu, f"{MODELS}:Waiting,fifo={fifo}", f"blk,path={image}")
    guest = domu.agent()
    guest("connect", dev=0)
    guest("connect", dev=1)
    guest.send("config_write", dev=0, offset=4, data="01000000")
    emulator.await_line("inside a request")
    domid = domu.domid
    domu.destroy()
    fifo.write_text("go on")  # the model answers to nobody
    assert emulator.wait() == 0, emulator.lines
    assert any("is gone" in line for line in emulator.lines)
    assert nothing_left(dom0, domid)
    assert dom0.read_optional(frontends_dir(domid)) is None
    # A grant that was still mapped would leave a domain without a name.
    until(lambda: not {domu.name, "(null)"} & set(domains()), f"{domains()}")
    assert dom0.read_optional(f"/local/domain/{domid}") is None
