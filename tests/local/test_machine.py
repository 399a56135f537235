"""Machines by name: whose directory it is, one broker each, and what is left after a violent end."""

from __future__ import annotations

import errno
import os
import select
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from emulator import local
from emulator.local import MachineError
from emulator.local.broker import Broker
from emulator.local.machine import ROOT
from tests.local.client import Client


def broker_pid(directory: Path) -> int:
    with local.Control(directory) as control:
        return control.pid


def python(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """A Python that imports what this one does."""
    search = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(ROOT)])
    return subprocess.Popen(
        [sys.executable, *arguments], text=True, env={**os.environ, "PYTHONPATH": search}, **options
    )


def end(pid: int) -> None:
    """Kills a process that is not a child and waits until it is gone."""
    handle = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        assert select.select([handle], [], [], 10)[0]
    finally:
        os.close(handle)


def test_a_broker_is_started_once_and_found_again(process_machine: Path) -> None:
    pid = broker_pid(process_machine)
    assert pid != os.getpid()
    assert os.getsid(pid) != os.getsid(0), "it must outlive the terminal it was started from"
    assert local.ensure_broker("p") == process_machine
    assert broker_pid(process_machine) == pid
    assert local.running("p")
    assert local.domains("p") == list(range(9))


def test_several_starters_at_once_start_one(runtime: Path) -> None:
    script = "from emulator import local; print(local.Control(local.ensure_broker('race')).pid)"
    starters = [python("-c", script, stdout=subprocess.PIPE) for _ in range(4)]
    pids = [starter.communicate()[0] for starter in starters]
    assert [starter.returncode for starter in starters] == [0] * 4
    assert len(set(pids)) == 1


def test_stop_returns_when_the_machine_is_free(runtime: Path) -> None:
    for _ in range(3):
        directory = local.ensure_broker("again")
        local.stop("again")
        assert not local.running("again")
        assert not list(directory.glob("dom*"))
    with pytest.raises(MachineError, match="virtio-dm local again") as error:
        local.stop("again")
    assert error.value.errno == errno.ENOENT


def test_a_killed_broker_leaves_its_clients_an_error_and_the_next_one_a_free_machine(process_machine: Path) -> None:
    with Client(process_machine, 1) as guest:
        guest.share(0)
        end(broker_pid(process_machine))
        assert (process_machine / "dom0" / "hypervisor").exists(), "stale sockets are part of the test"
        assert not local.running("p")
        with pytest.raises(ConnectionError):
            guest.share(0)
    with pytest.raises(MachineError) as error:
        local.domains("p")
    assert error.value.errno == errno.ENOENT
    local.ensure_broker("p")
    with Client(process_machine, 1) as guest:
        assert guest.share(0)[0] == 8


def test_a_second_broker_is_refused_and_names_the_first(machine: Path) -> None:
    with pytest.raises(MachineError, match=f"process {os.getpid()}") as error:
        Broker(machine)
    assert error.value.errno == errno.EBUSY
    with Client(machine, 1) as guest:
        guest.share(0)


def test_a_broker_by_hand_serves_until_it_is_told_to_end(runtime: Path) -> None:
    command = ("-m", "emulator.local", "hand", "--domains", "2")
    with python(*command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith(f"machine hand in {runtime / 'hand'}: dom0 and 2 domains")
        assert local.domains("hand") == [0, 1, 2]
        with python(*command, stderr=subprocess.PIPE) as second:
            _, complaint = second.communicate()
        assert second.returncode == 6
        assert f"has a broker already: process {process.pid}" in complaint
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert not local.running("hand")


def test_a_broker_that_does_not_answer_is_named(process_machine: Path) -> None:
    pid = broker_pid(process_machine)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(MachineError, match="does not answer") as error:
            local.Control(process_machine, timeout=0.05)
        assert error.value.errno == errno.ETIMEDOUT
    finally:
        os.kill(pid, signal.SIGCONT)


def test_the_broker_sleeps_when_nobody_asks(process_machine: Path) -> None:
    def turns() -> int:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.split("voluntary_ctxt_switches:")[1].split()[0])

    pid = broker_pid(process_machine)

    def asleep() -> bool:
        before = turns()
        time.sleep(0.2)  # not to wait for anything: this is a time in which nothing may happen
        return turns() == before

    with Client(process_machine, 1):
        assert any(asleep() for _ in range(20)), "it wakes up five times a second or more"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", "a b", "x" * 33, "ä", "a\nb"])
def test_a_name_that_is_no_plain_file_name_is_refused(runtime: Path, name: str) -> None:
    for use in (local.machine_directory, local.ensure_broker, local.running, local.stop, local.domains):
        with pytest.raises(MachineError, match="machine name") as error:
            use(name)
        assert error.value.errno == errno.EINVAL


def test_the_directory_is_for_its_owner_alone(runtime: Path) -> None:
    with Broker(runtime / "own", []):
        assert stat.S_IMODE((runtime / "own").stat().st_mode) == 0o700


def test_a_directory_that_others_can_reach_into_is_refused(runtime: Path) -> None:
    (runtime / "open").mkdir(mode=0o700)
    (runtime / "open").chmod(0o770)
    with pytest.raises(MachineError, match="open to other users") as error:
        local.ensure_broker("open")
    assert error.value.errno == errno.EACCES


def test_a_directory_that_is_a_link_is_refused(runtime: Path) -> None:
    (runtime / "real").mkdir(mode=0o700)
    (runtime / "link").symlink_to(runtime / "real")
    with pytest.raises(MachineError, match="not a directory"):
        local.ensure_broker("link")


@pytest.mark.root
def test_a_directory_of_somebody_else_is_refused(runtime: Path) -> None:
    (runtime / "theirs").mkdir(mode=0o700)
    os.chown(runtime / "theirs", 65534, 65534)
    with pytest.raises(MachineError, match="belongs to user 65534"):
        local.ensure_broker("theirs")


def test_a_path_too_long_for_a_socket_says_what_to_do(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRTIO_DM_RUNTIME_DIR", str(runtime / ("x" * 90)))
    with pytest.raises(MachineError, match="set VIRTIO_DM_RUNTIME_DIR") as error:
        local.ensure_broker("m")
    assert error.value.errno == errno.ENAMETOOLONG


def test_a_broker_that_cannot_start_says_why(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nonexistent")
    with pytest.raises(MachineError, match=r"cannot start the broker .*broker\.log"):
        local.ensure_broker("m")
