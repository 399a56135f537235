"""The saved state of a booted dom0: taken only for what it was made of, and no loss if it is of no use."""

import dataclasses
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts.xen_rig import booted, machine
from scripts.xen_rig.errors import RigError
from scripts.xen_rig.machine import Disks
from scripts.xen_rig.monitor import Monitor

FALSE_QEMU = """#!/bin/sh
echo "QEMU emulator version 7.2.0"
echo "load of migration failed: Invalid argument" >&2
exit 1
"""


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "bin/qemu-system-x86_64"
    program.parent.mkdir()
    program.write_text(FALSE_QEMU.replace("exit 1", 'case "$*" in *--version*) ;; *) exit 1 ;; esac'))
    program.chmod(0o755)
    for module in (booted, machine):
        monkeypatch.setattr(module, "tool", lambda name: str(program) if name.startswith("qemu") else name)
    return program


@pytest.fixture
def disks(tmp_path: Path, qemu: Path) -> Disks:
    names = [field.name for field in dataclasses.fields(Disks)]
    for name in names:
        directory = tmp_path / name
        directory.mkdir()
        (directory / "file").write_text(name)
    return Disks(**{name: tmp_path / name / "file" for name in names})


def other(disks: Disks, name: str, content: str) -> Disks:
    directory = disks.root.parent.parent / f"other-{name}"
    directory.mkdir(exist_ok=True)
    (directory / "file").write_text(content)
    return dataclasses.replace(disks, **{name: directory / "file"})


@pytest.mark.parametrize(("name", "content"), [("host", "x"), ("share", "x"), ("site", "size")])
def test_what_only_one_run_has_does_not_change_the_state(disks: Disks, name: str, content: str) -> None:
    changed = other(disks, name, content.replace("size", "SITE"))
    assert booted.identity(changed, 1) == booted.identity(disks, 1)


@pytest.mark.parametrize(
    ("name", "content"), [("root", "x"), ("libraries", "x"), ("ramdisk", "another init"), ("site", "another size")]
)
def test_another_image_ramdisk_or_size_is_another_state(disks: Disks, name: str, content: str) -> None:
    assert booted.identity(other(disks, name, content), 1) != booted.identity(disks, 1)


def test_another_number_of_cpus_is_another_state(disks: Disks) -> None:
    assert booted.identity(disks, 1) != booted.identity(disks, 2)


def test_another_qemu_is_another_state(disks: Disks, qemu: Path) -> None:
    before = booted.identity(disks, 1)
    qemu.write_text(qemu.read_text().replace("7.2.0", "7.2.1"))
    os.utime(qemu, (0, 0))
    assert booted.identity(disks, 1) != before


def test_a_dom0_of_the_other_kind_is_another_state(disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIRTIO_DM_RIG_DOM0", raising=False)
    before = booted.identity(disks, 1)
    monkeypatch.setenv("VIRTIO_DM_RIG_DOM0", "pv")
    assert booted.identity(disks, 1) == before
    monkeypatch.setenv("VIRTIO_DM_RIG_DOM0", "pvh")
    assert booted.identity(disks, 1) != before


def test_a_state_that_does_not_come_to_life_is_forgotten_and_the_machine_booted(
    disks: Disks, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "state-1/memory"
    saved.parent.mkdir()
    saved.write_bytes(b"garbage")
    with (
        pytest.raises(RigError, match=r"QEMU ended.*load of migration failed"),
        booted.session(disks, 1, "run", tmp_path / "log", saved=saved),
    ):
        pytest.fail("no machine was there")
    assert not saved.parent.exists()
    assert "the saved state is of no use, booting instead" in capfd.readouterr().err


@pytest.fixture
def monitor_ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def false_monitor(end: socket.socket, answers: list[object]) -> Callable[[], None]:
    def serve() -> None:
        with end.makefile("rwb") as file:
            file.write(b'{"QMP": {}}\n')
            file.flush()
            for answer in answers:
                file.readline()
                file.write(b'{"event": "STOP"}\n' + json.dumps(answer).encode() + b"\n")
                file.flush()

    return serve


def test_a_state_is_saved_once_qemu_says_completed(
    monitor_ends: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    states: list[object] = [{"return": {"status": status}} for status in ("active", "completed")]
    thread = threading.Thread(target=false_monitor(monitor_ends[1], [{"return": {}}] * 3 + states))
    thread.start()
    monitor = Monitor(monitor_ends[0])
    monitor.save(tmp_path / "memory")
    monitor.close()
    thread.join()


def test_a_state_that_cannot_be_saved_is_said(
    monitor_ends: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    failed: list[object] = [{"return": {"status": "failed", "error-desc": "no space"}}]
    thread = threading.Thread(target=false_monitor(monitor_ends[1], [{"return": {}}] * 3 + failed))
    thread.start()
    monitor = Monitor(monitor_ends[0])
    with pytest.raises(RigError, match="the machine's state was not saved: no space"):
        monitor.save(tmp_path / "memory")
    monitor.close()
    thread.join()
