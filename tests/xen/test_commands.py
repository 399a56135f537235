"""`virtio-dm` as it is typed in dom0, on a domain whose emulator runs and whose driver uses the devices."""

from __future__ import annotations

import json

import pytest

from cpp_ring.store import Store
from emulator.store_paths import backend_dir, frontend_dir
from tests.xen.domu import Domu, GuestAgent
from tests.xen.serving import Emulator, command

pytestmark = pytest.mark.parametrize("domu", ["pvh"], indirect=True)  # the kind makes no difference


def test_attach_list_and_detach_while_the_guest_uses_the_devices(domu: Domu, guest: GuestAgent, dom0: Store) -> None:
    domid = str(domu.domid)
    with Emulator(domu, "rng") as emulator:
        guest("connect", dev=0)
        assert command("attach", domid, "rng") == "1\n"
        guest("connect", dev=1)
        assert len(guest("rng", dev=1, size=16)["data"]) == 32
        shown = {"model": "rng", "backend_state": "connected", "frontend_state": "connected", "pid": emulator.pid}
        listed = {entry["devid"]: entry for entry in json.loads(command("list", "--json"))}
        assert sorted(listed) == [0, 1]
        for entry in listed.values():
            assert entry["domid"] == domu.domid
            assert shown.items() <= entry.items()
        head, *rows = [line.split() for line in command("list").splitlines()]
        assert head[:6] == ["DOMID", "DEVID", "MODEL", "BACKEND", "FRONTEND", "PID"]
        assert [row[:6] for row in rows] == [
            [domid, devid, "rng", "connected", "connected", str(emulator.pid)] for devid in "01"
        ]
        assert command("detach", domid, "1") == ""
        for path in (backend_dir(0, domu.domid, 1), frontend_dir(domu.domid, 1)):
            assert dom0.read_optional(path) is None, f"{path} is still there"
        assert guest("wait_gone", dev=1, timeout=20.0)["gone"]
        assert [entry["devid"] for entry in json.loads(command("list", "--json"))] == [0]
        assert [entry["dev"] for entry in guest("list")["devices"]] == [0]
        assert not [line for line in emulator.lines if "did not let go" in line], emulator.lines
        assert len(guest("rng", dev=0, size=16)["data"]) == 32
        guest("close", dev=0)


def test_a_guest_that_removes_its_own_nodes_can_be_given_the_device_again(
    domu: Domu, guest: GuestAgent, dom0: Store
) -> None:
    domid = str(domu.domid)
    with Emulator(domu, "rng") as emulator:
        guest("connect", dev=0)
        assert command("attach", domid, "rng") == "1\n"
        guest("connect", dev=1)
        assert domu.run(["xenstore-rm", "device/virtio-msg/1"]).code == 0
        emulator.await_line("device 1: disconnected")
        assert len(guest("rng", dev=0, size=16)["data"]) == 32
        assert command("detach", domid, "1") == ""
        assert guest("wait_gone", dev=1, timeout=20.0)["gone"]
        assert dom0.read_optional(frontend_dir(domu.domid, 1)) is None
        assert command("attach", domid, "rng") == "1\n"
        guest("connect", dev=1)
        assert len(guest("rng", dev=1, size=16)["data"]) == 32
        for devid in (0, 1):
            guest("close", dev=devid)
        command("detach", domid, "1")
