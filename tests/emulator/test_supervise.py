"""`virtio-dm supervise`: one emulator for each domain with devices; each process by its own id, none left behind."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from emulator import local
from emulator.exit_codes import ExitCode
from emulator.store_paths import State
from tests.emulator.drivers import EchoDriver
from tests.emulator.machines import MODELS, Machine, Process

ECHO = f"{MODELS}:Echo"


def supervisor(machine: Machine) -> Process:
    process = machine.start("supervise")
    process.await_line("watching the domains")
    return process


def emulator_of(machine: Machine, process: Process, count: int = 1) -> int:
    line = process.await_line(f"domain {machine.domid}: emulator", count)
    return int(line.split("emulator ")[1].split()[0])


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_it_follows_devices_as_they_come_and_go(machine: Machine) -> None:
    process = supervisor(machine)
    machine.attach(ECHO)
    pid = emulator_of(machine, process)
    machine.attach("rng")
    assert json.loads(machine.command("list", "--json").stdout)[-1]["pid"] == pid
    machine.command("detach", str(machine.domid), "1")
    machine.command("detach", str(machine.domid), "0")
    process.await_line(f"emulator {pid} ended (exit code 0)")
    machine.attach("rng")
    machine.await_state(State.INIT_WAIT)
    assert process.stop() == ExitCode.OK


def test_devices_that_are_there_already_are_served(machine: Machine) -> None:
    machine.attach(ECHO)
    process = supervisor(machine)
    machine.await_state(State.INIT_WAIT)
    assert process.stop() == ExitCode.OK


def test_an_emulator_that_is_killed_is_started_again_and_the_guest_goes_on(machine: Machine) -> None:
    process = supervisor(machine)
    machine.attach(ECHO)
    pid = emulator_of(machine, process)
    with EchoDriver(machine.domain(), 0) as device:
        assert device.echo(b"one") == b"one"
        os.kill(pid, signal.SIGKILL)
        assert device.echo(b"two") == b"two"
    process.await_line(f"emulator {pid} ended (killed by signal 9")


def test_an_emulator_that_keeps_failing_is_started_again_ever_more_slowly(machine: Machine) -> None:
    lock = machine.directory / f"dom{machine.domid}" / "emulator.lock"
    lock.mkdir()  # every emulator of this domain fails at its lock
    process = supervisor(machine)
    machine.command("attach", str(machine.domid), "rng", "--no-wait")
    assert "in 0.05 s" in process.await_line("starting another", 1)
    assert "in 0.1 s" in process.await_line("starting another", 2)
    assert "in 0.2 s" in process.await_line("starting another", 3)
    lock.rmdir()
    machine.await_state(State.INIT_WAIT)


def test_the_end_of_a_domain_ends_its_emulator(machine: Machine) -> None:
    process = supervisor(machine)
    machine.attach(ECHO)
    pid = emulator_of(machine, process)
    local.destroy_domain("t", machine.domid)
    process.await_line(f"emulator {pid} ended")
    assert process.stop() == ExitCode.OK


def test_its_emulators_end_with_it_in_order(machine: Machine) -> None:
    process = supervisor(machine)
    machine.attach(ECHO)
    pid = emulator_of(machine, process)
    assert process.stop() == ExitCode.OK
    assert not alive(pid)
    assert machine.node("state") == str(int(State.INITIALISING))


def test_its_emulators_end_when_it_is_killed(machine: Machine) -> None:
    process = supervisor(machine)
    machine.attach(ECHO)
    pid = emulator_of(machine, process)
    machine.await_state(State.INIT_WAIT)
    handle = os.pidfd_open(pid)
    process.kill()
    machine.await_state(State.INITIALISING)
    os.close(handle)


def test_a_second_signal_kills_emulators_that_are_stuck(machine: Machine) -> None:
    process = supervisor(machine)
    machine.attach(f"{MODELS}:Misbehaving,where=close,what=sleep,seconds=60")
    pid = emulator_of(machine, process)
    process.signal(signal.SIGTERM)
    process.await_line("stopping: SIGTERM")
    process.signal(signal.SIGTERM)
    assert process.wait() == ExitCode.FORCED
    assert not alive(pid)


def test_a_second_supervisor_is_refused(machine: Machine) -> None:
    first = supervisor(machine)
    assert str(first.pid) in machine.command("supervise", code=ExitCode.ALREADY_RUNNING).stderr


def test_a_domain_that_somebody_else_serves_is_left_alone_and_taken_over(machine: Machine) -> None:
    other = machine.run()
    process = supervisor(machine)
    machine.attach(ECHO)
    assert str(other.pid) in process.await_line("is served by process")
    assert other.stop() == ExitCode.OK
    emulator_of(machine, process)
    machine.await_state(State.INIT_WAIT)
