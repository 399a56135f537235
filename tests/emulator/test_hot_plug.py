"""attach, detach, update and list, on a running emulator and without one; all through the store."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cpp_ring.store import Access, Store
from emulator import backend_nodes, local, store_paths, toolstack
from emulator.exit_codes import ExitCode
from emulator.machine import Machine as EmulatorMachine
from emulator.machine import open_machine, parse_hypervisor
from emulator.spec import parse
from emulator.store_paths import State
from guest.blk import BlockDevice
from tests.emulator.drivers import EchoDriver
from tests.emulator.machines import MODELS, Machine

ECHO = f"{MODELS}:Echo"


def entries(machine: Machine) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = json.loads(machine.command("list", "--json").stdout)
    return [row for row in rows if row["domid"] == machine.domid]


def test_attach_on_a_running_emulator_returns_when_the_device_is_ready(machine: Machine) -> None:
    process = machine.run()
    assert [machine.attach(ECHO), machine.attach("rng")] == [0, 1]
    assert machine.node("state", 1) == str(int(State.INIT_WAIT))
    with EchoDriver(machine.domain(), 0) as device:
        assert device.echo(b"x") == b"x"
        machine.await_state(State.CONNECTED)
        row, other = entries(machine)
        assert row == {
            "domid": machine.domid,
            "devid": 0,
            "model": ECHO,
            "spec": ECHO,
            "backend_state": "connected",
            "frontend_state": "connected",
            "device_id": 66,
            "error": None,
            "pid": process.pid,
        }
        assert other["model"] == "rng"


def test_attach_without_an_emulator_prepares_the_device_for_one(machine: Machine) -> None:
    done = machine.command("attach", str(machine.domid), ECHO)
    assert done.stdout == "0\n"
    assert f"virtio-dm run --domid {machine.domid}" in done.stderr
    assert entries(machine)[0]["pid"] is None
    machine.run()
    machine.await_state(State.INIT_WAIT)


def test_the_lowest_free_number_is_taken_and_one_in_use_is_refused(machine: Machine) -> None:
    for _ in range(3):
        machine.attach("rng")
    machine.command("detach", str(machine.domid), "1")
    assert machine.attach("rng") == 1
    assert machine.command("attach", str(machine.domid), "rng", "--id", "7").stdout == "7\n"
    machine.command("attach", str(machine.domid), "rng", "--id", "7", code=ExitCode.REFUSED)


def test_nodes_have_the_least_permissions(machine: Machine) -> None:
    machine.attach(f"{ECHO},start=5")
    home = f"/local/domain/0/backend/virtio-msg/{machine.domid}/0"
    with machine.frontend_store() as store:
        assert store.read(f"{home}/state") == "1"
        for secret in ("spec", "update"):
            with pytest.raises(OSError, match=r"EACCES|ENOENT"):
                store.read(f"{home}/{secret}")
        with pytest.raises(OSError, match="EACCES"):
            store.write(f"{home}/state", "4")
        with pytest.raises(OSError, match="EACCES"):
            store.write(f"{machine.frontend_path()}/backend", "/elsewhere")
        store.write(f"{machine.frontend_path()}/state", "1")


def test_detach_takes_a_device_from_a_guest_that_follows(machine: Machine) -> None:
    machine.run()
    machine.attach(ECHO)
    device = EchoDriver(machine.domain(), 0)
    machine.command("detach", str(machine.domid), "0", "--no-wait")
    machine.await_state(State.CLOSING)
    assert device.transport.lost()
    device.close()
    machine.await_removal()


def test_detach_does_not_wait_for_ever_for_a_guest_that_does_not(machine: Machine) -> None:
    process = machine.run()
    machine.attach(ECHO)
    device = EchoDriver(machine.domain(), 0)
    machine.command("detach", str(machine.domid), "0")
    assert machine.node("state") is None
    assert any("did not let go" in line for line in process.lines)
    assert not device.transport.frontend.backend_alive
    device.close()


def test_detach_without_an_emulator_removes_the_device_at_once(machine: Machine) -> None:
    machine.attach("rng")
    machine.command("detach", str(machine.domid), "0")
    assert entries(machine) == []
    machine.command("detach", str(machine.domid), "0", code=ExitCode.NO_DEVICE)


def test_what_is_attached_while_another_device_is_removed_stays(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A domain's directory goes with its last device: whether it is the last may change while one looks."""
    machine.attach("rng")
    attached: list[int] = []

    def children(nodes: Access, directory: str) -> list[str]:
        found = store_paths.children(nodes, directory)
        if not attached:
            with Store.open(machine.directory / "dom0" / "xenstored") as other:
                attached.append(toolstack.attach(other, 0, machine.domid, parse(ECHO)))
        return found

    monkeypatch.setattr(backend_nodes, "children", children)
    backend_nodes.remove(machine.store, 0, machine.domid, 0)
    assert [machine.node("spec", devid) for devid in attached] == [ECHO]


def test_a_number_can_be_used_again_at_once(machine: Machine) -> None:
    machine.run()
    for _ in range(3):
        machine.attach(ECHO)
        with EchoDriver(machine.domain(), 0) as device:
            assert device.echo(b"y") == b"y"
        machine.command("detach", str(machine.domid), "0")


def test_update_reaches_the_guest_and_the_next_emulator(machine: Machine) -> None:
    process = machine.run()
    machine.attach(f"{ECHO},start=1")
    with EchoDriver(machine.domain(), 0) as device:
        assert device.config_number(0, 4) == 1
        machine.command("update", str(machine.domid), "0", "start=9")
        assert device.wait_config_change(10)
        assert device.config_number(0, 4) == 9
        process.stop()
        machine.run()
        device.wait_config_change(10)
        assert device.config_number(0, 4) == 9


def test_update_of_a_device_that_no_guest_uses_works(machine: Machine) -> None:
    machine.run()
    machine.attach(ECHO)
    machine.command("update", str(machine.domid), "0", "start=3")
    with EchoDriver(machine.domain(), 0) as device:
        assert device.config_number(0, 4) == 3


@pytest.mark.parametrize(
    ("change", "code"),
    [("start=13", ExitCode.REFUSED), ("start=many", ExitCode.BAD_DEVICE), ("nonsense=1", ExitCode.BAD_DEVICE)],
)
def test_an_update_that_is_refused_changes_nothing_and_says_why(machine: Machine, change: str, code: ExitCode) -> None:
    machine.run()
    machine.attach(f"{ECHO},start=1")
    with EchoDriver(machine.domain(), 0) as device:
        done = machine.command("update", str(machine.domid), "0", change, code=code)
        assert change.partition("=")[0] in done.stderr
        assert device.config_number(0, 4) == 1
    machine.command("update", str(machine.domid), "0", "start=2")


def test_what_is_wrong_with_the_words_of_an_update_never_reaches_the_store(machine: Machine) -> None:
    machine.attach(ECHO)  # nobody serves it: an update that was written would be refused for that
    for change in ("nonsense=1", "start=many", "start"):
        done = machine.command("update", str(machine.domid), "0", change, code=ExitCode.BAD_DEVICE)
        assert len(done.stderr.splitlines()) == 1
    assert machine.node("update") is None


def test_an_update_that_only_the_emulator_can_judge_is_shown_once(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODELS.read_text())
    machine.run()
    machine.attach(f"{tmp_path}/mine.py:Echo")
    (tmp_path / "mine.py").unlink()
    said = machine.command("update", str(machine.domid), "0", "nonsense=1", code=ExitCode.REFUSED).stderr
    assert said == "virtio-dm: echo: no option 'nonsense'; known: start\n"
    assert machine.node("error") == "update echo: no option 'nonsense'; known: start"


def test_a_live_disk_is_not_cut_to_nothing(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(4096))
    machine.run()
    machine.attach(f"blk,path={tmp_path}/disk.img")
    with BlockDevice(machine.domain(), 0) as disk:
        done = machine.command("update", str(machine.domid), "0", "size=100", code=ExitCode.REFUSED)
        assert "size=100 is no multiple of 512" in done.stderr
        assert disk.capacity == 8


def test_update_needs_an_emulator_and_a_device(machine: Machine) -> None:
    machine.attach(ECHO)
    machine.command("update", str(machine.domid), "0", "start=1", code=ExitCode.REFUSED)
    machine.run()
    machine.command("update", str(machine.domid), "5", "start=1", code=ExitCode.NO_DEVICE)


def test_a_disk_that_has_grown_is_seen_by_the_guest(machine: Machine, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.touch()
    os.truncate(image, 1 << 20)
    machine.run()
    machine.attach(f"blk,path={image}")
    with BlockDevice(machine.domain(), 0) as disk:
        assert disk.capacity == 2048
        os.truncate(image, 2 << 20)
        machine.command("update", str(machine.domid), "0")
        assert disk.wait_config_change(10)
        assert disk.capacity == 4096


def test_a_size_that_an_update_let_go_of_does_not_come_back(machine: Machine, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.touch()
    machine.run()
    machine.attach(f"blk,path={image},size=1M,serial=x")
    os.truncate(image, 2 << 20)
    machine.command("update", str(machine.domid), "0")
    assert machine.node("spec") == f"blk,path={image},serial=x"


def test_a_device_that_could_not_be_made_is_tried_again_by_an_update(machine: Machine, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    machine.attach(f"blk,path={image}")
    image.unlink()
    machine.run()
    machine.await_state(State.CLOSED)
    machine.command("update", str(machine.domid), "0", "size=1M", code=ExitCode.REFUSED)
    assert "disk.img" in machine.command("update", str(machine.domid), "0", code=ExitCode.REFUSED).stderr
    image.write_bytes(bytes(4096))
    machine.command("update", str(machine.domid), "0")
    machine.await_state(State.INIT_WAIT)
    assert machine.node("error") is None


def test_a_domain_that_is_not_there_is_told_from_a_device_that_is_not(machine: Machine) -> None:
    for command in (("detach", "999", "0"), ("update", "999", "0")):
        assert "no domain 999" in machine.command(*command, code=ExitCode.NO_DOMAIN).stderr


def test_a_device_of_a_driver_domain_is_its_nodes_alone(machine: Machine) -> None:
    serving = machine.domid
    machine.new_domain()
    attach = ("attach", str(machine.domid), "blk,path=/there/only", "--backend", str(serving), "--no-wait")
    assert machine.command(*attach).stdout == "0\n"
    home = f"/local/domain/{serving}/backend/virtio-msg/{machine.domid}/0"
    assert machine.store.get_perms(home) == [f"n{serving}", f"r{machine.domid}"]
    assert machine.store.read(f"{home}/spec") == "blk,path=/there/only"
    assert machine.store.read(f"{machine.frontend_path()}/backend-id") == str(serving)
    machine.store.write(f"{home}/device-id", "no number")
    machine.store.write(f"{home}/error", "\x1b[2J")
    listed = machine.command("list", "--backend", str(serving)).stdout
    assert "\\x1b[2J" in listed
    assert "\x1b" not in listed
    local.destroy_domain("t", serving)  # and with it all it had
    machine.command("detach", str(machine.domid), "0", "--backend", str(serving))
    assert machine.store.read_optional(machine.frontend_path()) is None


@pytest.mark.parametrize(("backend", "code"), [("999", ExitCode.NO_DOMAIN), ("itself", ExitCode.USAGE)])
def test_a_driver_domain_has_to_be_there_and_another_one(machine: Machine, backend: str, code: ExitCode) -> None:
    number = str(machine.domid) if backend == "itself" else backend
    machine.command("attach", str(machine.domid), "rng", "--backend", number, code=code)
    assert machine.store.read_optional(machine.frontend_path()) is None


def test_what_a_dead_domain_left_can_be_detached(machine: Machine) -> None:
    machine.store.write("/local/domain/0/backend/virtio-msg/999/0/frontend-id", "999")
    machine.command("detach", "999", "0")
    assert machine.node("frontend-id", domid=999) is None


def test_attach_of_what_cannot_be_built_leaves_nothing(machine: Machine, tmp_path: Path) -> None:
    machine.run()
    machine.command("attach", str(machine.domid), "nonsense", code=ExitCode.BAD_DEVICE)
    machine.command("attach", str(machine.domid), "blk", code=ExitCode.BAD_DEVICE)
    machine.command("attach", str(machine.domid), f"blk,path={tmp_path}/none", code=ExitCode.MISSING_FILE)
    misbehaving = f"{MODELS}:Misbehaving,where=open"
    done = machine.command("attach", str(machine.domid), misbehaving, code=ExitCode.REFUSED)
    assert "ValueError" in done.stderr
    assert entries(machine) == []


def test_what_a_device_of_the_machine_uses_is_said_to_be_its(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(4096))
    process = machine.run()
    machine.attach("rng")
    machine.attach(f"blk,path={tmp_path}/disk.img")
    (tmp_path / "link.img").symlink_to(tmp_path / "disk.img")
    attach = ("attach", str(machine.domid), f"blk,path={tmp_path}/link.img")
    said = machine.command(*attach, code=ExitCode.MISSING_FILE).stderr
    assert f"link.img is in use by device 1 of domain {machine.domid}; `virtio-dm detach {machine.domid} 1`" in said
    assert len(said.splitlines()) == 1
    run = ("run", "--domid", str(machine.domid), "--device", f"blk,path={tmp_path}/disk.img")
    said = machine.command(*run, code=ExitCode.MISSING_FILE).stderr
    assert f"in use by device 1 of domain {machine.domid};" in said
    assert f"the end of process {process.pid}" in said
    assert len(said.splitlines()) == 1
    process.stop()
    assert machine.command(*attach).stdout == "2\n"


def test_a_relative_path_means_the_same_to_the_emulator(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(4096))
    machine.run()
    monkeypatch.chdir(tmp_path)
    machine.attach("blk,path=disk.img,readonly=on")
    assert entries(machine)[0]["spec"] == f"blk,path={tmp_path}/disk.img,readonly=on"


def test_a_spec_that_was_wrong_is_built_once_it_is_right(machine: Machine) -> None:
    machine.run()
    home = f"/local/domain/0/backend/virtio-msg/{machine.domid}/0"
    for name, value in {"state": 1, "online": 1, "frontend-id": machine.domid}.items():
        machine.store.write(f"{home}/{name}", str(value))
    machine.await_state(State.CLOSED)
    assert (machine.node("error") or "").startswith("spec ")
    machine.store.write(f"{home}/spec", ECHO)
    machine.await_state(State.INIT_WAIT)
    assert machine.node("error") is None


def test_the_list_for_people_has_a_line_for_each_device(machine: Machine) -> None:
    machine.attach("rng")
    header, *lines = machine.command("list").stdout.splitlines()
    assert header.split() == ["DOMID", "DEVID", "MODEL", "BACKEND", "FRONTEND", "PID", "SPEC", "ERROR"]
    assert [str(machine.domid), "0", "rng", "initialising", "initialising", "-", "rng"] in [
        line.split() for line in lines
    ]


def test_devices_that_come_and_go_leave_nothing_in_the_process(machine: Machine) -> None:
    process = machine.run()

    def held() -> tuple[int, int]:
        """Open descriptors, threads."""
        proc = Path(f"/proc/{process.pid}")
        return len([*(proc / "fd").iterdir()]), len([*(proc / "task").iterdir()])

    counts = []
    for _ in range(4):
        toolstack.attach(machine.store, 0, machine.domid, parse(ECHO))
        machine.await_state(State.INIT_WAIT)
        with EchoDriver(machine.domain(), 0) as device:
            assert device.echo(b"z") == b"z"
        toolstack.detach(whole(machine), machine.store, machine.domid, 0)
        counts.append(held())
    assert counts[0] == counts[-1]


def whole(machine: Machine) -> EmulatorMachine:
    """The machine as commands see it."""
    return open_machine(parse_hypervisor(machine.name))
