"""The service manager hears what it needs to hear, and its absence is no error."""

from __future__ import annotations

import configparser
import os
import shlex
import signal
import socket
from pathlib import Path

import pytest

from emulator import systemd
from emulator.cli import group
from emulator.exit_codes import ExitCode
from tests.emulator.machines import Machine

UNITS = sorted(Path(systemd.__file__).parent.joinpath("units").iterdir())


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_a_message_reaches_the_socket(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = str(tmp_path / "notify") if kind == "path" else f"@virtio-dm-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0"))
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        systemd.notify("READY=1")
        assert manager.recv(64) == b"READY=1"


@pytest.mark.parametrize("address", [None, "", "relative", "/nowhere/at/all", "/" + "x" * 300])
def test_no_service_manager_is_no_error(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    systemd.notify("READY=1")


@pytest.mark.parametrize(
    ("microseconds", "pid", "period"),
    [
        ("3000000", None, 1.5),
        ("3000000", "own", 1.5),
        ("3000000", "1", None),
        ("0", None, None),
        ("soon", None, None),
        (None, None, None),
    ],
)
def test_the_watchdog_is_fed_twice_in_its_time(
    microseconds: str | None, pid: str | None, period: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WATCHDOG_USEC", microseconds), ("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert systemd.watchdog_period() == period


@pytest.mark.parametrize("command", ["run", "supervise"])
def test_a_service_says_ready_stays_awake_and_says_stopping(machine: Machine, tmp_path: Path, command: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        arguments = ["run", "--domid", str(machine.domid)] if command == "run" else ["supervise"]
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "100000"}
        process = machine.start(*arguments, environment=environment)
        heard = [manager.recv(64) for _ in range(4)]
        assert sorted(set(heard)) == [b"READY=1", b"WATCHDOG=1"]
        process.signal(signal.SIGTERM)
        while heard[-1] != b"STOPPING=1":
            heard.append(manager.recv(64))
        assert process.wait() == ExitCode.OK


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_a_unit_runs_a_command_line_that_exists(unit: Path) -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(unit)
    service = parser["Service"]
    program, name, *arguments = shlex.split(service["ExecStart"].replace("%i", "3"))
    assert program == "virtio-dm"
    command = group.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None
    command.make_context(name, arguments)
    assert service["Type"] == "notify"
    assert int(service["WatchdogSec"]) > 0


LASTING = {ExitCode.USAGE, ExitCode.ALREADY_RUNNING, ExitCode.NOT_PERMITTED, ExitCode.NOT_INSTALLED}
"""Ways to end that a new start cannot change, whatever the command; those of `run` besides."""
LASTING_OF_RUN = {ExitCode.BAD_DEVICE, ExitCode.NO_DOMAIN}


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_a_unit_is_not_started_again_and_again_for_what_stays_wrong(unit: Path) -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(unit)
    service = parser["Service"]
    given_up = {ExitCode(int(code)) for code in service["RestartPreventExitStatus"].split()}
    assert given_up == LASTING | (LASTING_OF_RUN if " run " in service["ExecStart"] else set())
    # What is tried again ends too, if it is tried often and in vain: systemd's own limit is 5 starts in 10 s.
    assert parser["Unit"].get("StartLimitIntervalSec", "10s") != "0"
    assert int(parser["Unit"].get("StartLimitBurst", "5")) <= 60
