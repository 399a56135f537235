"""docs/writing-a-device.md does what it says: its files are written, its commands typed, its output compared."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.raw_backend import local_machine

TUTORIAL = Path(__file__).parent.parent / "docs" / "writing-a-device.md"
PATIENCE = 30.0


def blocks() -> Iterator[tuple[str, str]]:
    """The fenced blocks: language and content, in order."""
    for found in re.finditer(r"^```(\w+)\n(.*?)^```$", TUTORIAL.read_text(), re.MULTILINE | re.DOTALL):
        yield found[1], found[2]


def commands(block: str) -> Iterator[tuple[str, list[str]]]:
    """The commands of a console block, each with the lines it is shown to print."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        line, *output = part.rstrip("\n").split("\n")
        yield line, output


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory to work in, where `virtio-dm` and `python` are this test's own."""
    tools = tmp_path / "bin"
    work = tmp_path / "work"
    tools.mkdir()
    work.mkdir()
    for name, arguments in (("virtio-dm", "-m emulator "), ("python", "")):
        tool = tools / name
        tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}"$@"\n')
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("VIRTIO_DM_HYPERVISOR", "local")
    with local_machine():
        yield work
        from emulator import local

        if local.running("default"):
            local.stop("default")


def test_the_tutorial_does_what_it_says(shell: Path) -> None:
    background: list[subprocess.Popen[bytes]] = []
    typed = 0
    try:
        for language, content in blocks():
            if language == "python":
                (shell / content.split("\n", 1)[0].removeprefix("# ")).write_text(content)
                continue
            assert language == "console", language
            for line, expected in commands(content):
                typed += 1
                if line.endswith(" &"):
                    command = ["sh", "-c", f"exec {line.removesuffix(' &')}"]
                    background.append(subprocess.Popen(command, cwd=shell, stderr=subprocess.DEVNULL))
                    await_device(shell)
                    continue
                done = subprocess.run(line, shell=True, cwd=shell, capture_output=True, text=True, timeout=PATIENCE)
                assert done.returncode == 0, f"{line}: {done.stderr}"
                printed = [text.rstrip() for text in done.stdout.splitlines()]
                assert printed[: len(expected)] == expected, line
    finally:
        for process in background:
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
    assert typed >= 6
    assert len(background) == 1


def await_device(directory: Path) -> None:
    """Until the emulator offers the device."""
    deadline = time.monotonic() + PATIENCE
    while True:
        listed = subprocess.run(["virtio-dm", "list"], cwd=directory, capture_output=True, text=True, timeout=PATIENCE)
        if "Thermometer" in listed.stdout:
            return
        assert time.monotonic() < deadline, listed.stdout + listed.stderr
        time.sleep(0.1)
