"""The conversation with dom0: output passed on, the exit code, a clear end when dom0 dies. With a false machine."""

import json
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.xen_rig import session as session_module
from scripts.xen_rig.errors import DOM0_DIED, SCRIPT_TIMEOUT, RigError
from scripts.xen_rig.machine import Machine
from scripts.xen_rig.session import Session


class FalseMachine(Machine):
    """The host's ends as Machine has them; `dom0` holds the others. Its process is one that only sleeps."""

    def __init__(self) -> None:
        self.control, self.dom0_control = socket.socketpair()
        self.output, self.dom0_output = socket.socketpair()
        self.monitor, self.dom0_monitor = socket.socketpair()
        console, self.dom0_console = socket.socketpair()
        self.console = console
        self._terminal = None
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  stop() closes it
        self.process = subprocess.Popen(["sleep", "60"])

    def stop(self) -> None:
        super().stop()
        for end in (self.dom0_control, self.dom0_output, self.dom0_monitor, self.dom0_console):
            end.close()


@pytest.fixture
def machine() -> Iterator[FalseMachine]:
    with FalseMachine() as machine:
        yield machine


@pytest.fixture
def session(machine: FalseMachine, tmp_path: Path) -> Iterator[Session]:
    session = Session(machine, tmp_path / "console.log")
    yield session
    session.close()


def test_output_is_passed_on_and_the_exit_code_is_the_scripts(
    machine: FalseMachine, session: Session, capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> None:
    def dom0() -> None:
        machine.dom0_console.sendall(b"(XEN) hello\r\n")
        machine.dom0_control.sendall(b"ready\n")
        assert machine.dom0_control.recv(100).startswith(b"run ")
        machine.dom0_control.sendall(b"begun\n")
        machine.dom0_output.sendall(b"first\n\xff")
        machine.dom0_control.sendall(b"exit 7\n")

    thread = threading.Thread(target=dom0)
    thread.start()
    session.wait_ready()
    session.begin("run", 10)
    assert session.wait(10) == 7
    thread.join()
    assert capfdbinary.readouterr() == (b"first\n\xff", b"")
    assert b"(XEN) hello" in (tmp_path / "console.log").read_bytes()


@pytest.mark.parametrize(
    "words",
    [b"(XEN) Panic on CPU 0:\r\n", b"Kernel panic - not syncing: x\r\n", b"(XEN) Hardware Dom0 crashed: rebooting\r\n"],
)
def test_a_crash_ends_the_run_with_the_consoles_end(
    machine: FalseMachine,
    session: Session,
    words: bytes,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_module, "LAST_WORDS", 0.0)
    machine.dom0_console.sendall(b"before\r\n" + words + b"after")
    with pytest.raises(RigError, match="dom0 or Xen crashed") as raised:
        session.wait_ready()
    assert raised.value.code == DOM0_DIED
    lines = capfd.readouterr().err.splitlines()
    assert (lines[0], lines[-1]) == ("console: before", "console: after")


def test_the_end_of_qemu_is_said_with_its_last_line(machine: FalseMachine, session: Session) -> None:
    machine.process.kill()
    machine.process.wait()
    with pytest.raises(RigError, match="QEMU ended while dom0 was running: no message"):
        session.wait_ready()


def test_a_script_that_runs_too_long_has_its_own_code_and_the_machine_is_asked_what_it_does(
    machine: FalseMachine, session: Session, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "ANSWERED", 0.1)
    said = [f"(XEN) line {number}" for number in range(session_module.TAIL * 2)]

    def xen() -> None:
        assert machine.dom0_console.recv(1) == b"d"
        machine.dom0_console.sendall("".join(f"{line}\r\n" for line in said).encode())

    answers: list[object] = [{"QMP": {}}, {"return": {}}, {"return": "CPU#0\r\nFPR0=0\r\nRIP=1"}]
    answers += [{"return": "IRR 1"}, {"return": ""}]
    machine.dom0_monitor.sendall("".join(f"{json.dumps(answer)}\n" for answer in answers).encode())
    thread = threading.Thread(target=xen)
    thread.start()
    with pytest.raises(RigError, match=r"still running after 0\.01 s") as raised:
        session.wait(0.01)
    assert raised.value.code == SCRIPT_TIMEOUT
    thread.join()
    lines = capfd.readouterr().err.splitlines()
    assert lines == ["qemu: CPU#0", "qemu: RIP=1", "qemu: IRR 1", *(f"console: {line}" for line in said)]


def test_the_machine_gets_an_interrupt_from_time_to_time(
    machine: FalseMachine, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "HEARTBEAT", 0.0)
    monkeypatch.setattr(session_module, "POLL", 0.01)

    def dom0() -> None:
        machine.dom0_control.recv(100)
        machine.dom0_control.sendall(b"begun\n")
        got = machine.dom0_console.recv(3, socket.MSG_WAITALL)
        assert got == session_module.INPUT_TO_XEN
        assert machine.dom0_console.recv(2, socket.MSG_WAITALL) == session_module.BEAT * 2
        machine.dom0_control.sendall(b"exit 0\n")

    thread = threading.Thread(target=dom0)
    thread.start()
    session.begin("run", 10)
    assert session.wait(10) == 0
    thread.join()


def test_a_dead_machine_is_not_waited_for_when_it_is_asked_what_it_does(
    machine: FalseMachine, session: Session
) -> None:
    machine.dom0_monitor.close()
    machine.dom0_console.close()
    with pytest.raises(RigError, match="still running"):
        session.wait(0.01)


def test_a_dom0_that_takes_no_order_is_said(session: Session) -> None:
    with pytest.raises(RigError, match="dom0 did not take its order"):
        session.begin("run", 0.01)
