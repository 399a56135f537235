"""The parts of the tests on Xen: each in a machine of its own, and one run for whoever started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.xen_rig import parts

MACHINE = """#!/bin/sh
# In the place of Python: gets -m scripts.xen_rig test --part PART and the arguments.
[ "$6" != slow ] || { echo "$$" >"$MACHINES/$5"; exec sleep 60; }
[ "$5" != pv ] || sleep 0.3
echo "$5 $6 ends"
code=$(cat "$MACHINES/$5.code" 2>/dev/null || echo 0)
[ "$code" != killed ] || kill -9 $$
exit "$code"
"""
TERMINABLE = """
import signal, sys
from scripts.xen_rig import parts
def end(*_):
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
sys.executable = sys.argv[1]
parts.run(["slow"])
"""


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "python"
    path.write_text(MACHINE)
    path.chmod(0o755)
    monkeypatch.setenv("MACHINES", str(tmp_path))
    return path


def test_the_output_of_one_part_follows_that_of_another(
    python: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", str(python))
    assert parts.run(["-q"]) == 0
    out, err = capfd.readouterr()
    assert (out, err) == ("pv -q ends\npvh -q ends\ntwo-cpus -q ends\n", "")


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ({"pv": 1}, 1),
        ({"pvh": 1, "two-cpus": 124}, 124),
        ({"pv": "killed"}, 137),
        ({"pv": parts.NO_TESTS, "two-cpus": parts.NO_TESTS}, 0),
        ({"pv": parts.NO_TESTS, "pvh": 1, "two-cpus": parts.NO_TESTS}, 1),
        (dict.fromkeys(parts.CPUS, parts.NO_TESTS), parts.NO_TESTS),
    ],
)
def test_a_part_that_fails_fails_all_and_one_without_tests_does_not(
    python: Path,
    codes: dict[str, int | str],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "executable", str(python))
    for part, its_code in codes.items():
        (python.parent / f"{part}.code").write_text(str(its_code))
    assert parts.run([]) == code
    said = capfd.readouterr().err
    assert said.startswith("xen-rig: exit codes: pv ") if code not in (0, parts.NO_TESTS) else not said


def test_who_is_told_to_end_ends_the_machines_first(python: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", TERMINABLE, str(python)])
    started = [python.parent / part for part in parts.TURNS[0]]
    try:
        deadline = time.monotonic() + 30
        while not all(path.exists() and path.read_text() for path in started):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
    for path in started:
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)
