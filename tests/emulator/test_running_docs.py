"""docs/running.md is true: its commands run as typed, its exit codes are the program's."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from emulator.config_file import read
from emulator.exit_codes import MEANINGS
from tests.emulator.machines import Machine

TEXT = (Path(__file__).parent.parent.parent / "docs" / "running.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def test_every_exit_code_is_explained_in_the_programs_words() -> None:
    rows = re.findall(r"^\|(\d+)\|(.*)\|$", TEXT, re.MULTILINE)
    assert [(int(code), text.replace("`", "")) for code, text in rows] == [
        (code.value, text) for code, text in MEANINGS.items()
    ]


def test_the_configuration_file_is_one(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(blocks("toml")[0])
    assert [device.model for device in read(tmp_path / "run.toml").devices] == ["blk", "rng"]


def test_the_commands_run_as_typed(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIRTIO_DM_HYPERVISOR", machine.name)

    def typed(line: str) -> list[str]:
        words = shlex.split(line.replace("--domid 1", f"--domid {machine.domid}"), comments=True)
        return [str(machine.domid) if index == 2 and word == "1" else word for index, word in enumerate(words)]

    prepare, run, *hot_plug = "".join(blocks("sh")[:2]).splitlines()
    subprocess.run(typed(prepare), check=True)
    process = machine.start(*typed(run)[1:])
    process.await_line("device 1: ready")
    for line in hot_plug:
        program, *arguments = typed(line)
        assert program == "virtio-dm"
        machine.command(*arguments)
    assert (tmp_path / "disk.img").stat().st_size == 128 << 20
    process.signal(signal.SIGINT)
    assert process.wait() == 0


def test_the_units_are_where_the_text_says() -> None:
    (copy,) = [line for line in "".join(blocks("sh")).splitlines() if line.startswith("cp ")]
    expression = re.search(r"python3 -c '(.*?)'", copy)
    assert expression is not None
    done = subprocess.run(
        [sys.executable, "-c", expression[1]], capture_output=True, text=True, check=True, env=os.environ, timeout=60
    )
    assert (Path(done.stdout.strip()) / "units" / "virtio-dm@.service").exists()
