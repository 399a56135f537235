"""pytest as a fork of a Python that imported it before, as dom0 has it from a saved state, behaves as one started."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

DOM0 = Path(__file__).parents[2] / "scripts/xen_rig/dom0"
PATIENCE = 30.0
TESTS = """
import os, signal
def test_passes(): print("word is", os.environ["WORD"], "in", os.getcwd())
def test_fails(): assert False
def test_dies(): os.kill(os.getpid(), signal.SIGSEGV)
"""


class Warm:
    """A warm Python of its own FIFO in `directory`, which has the tests too."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.fifo = directory / "fifo"
        self.process = subprocess.Popen(
            [sys.executable, DOM0 / "warm.py", self.fifo],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + PATIENCE
        while not self.fifo.exists():
            assert time.monotonic() < deadline
            assert self.process.poll() is None
            time.sleep(0.02)  # a FIFO that is not there yet cannot be waited for

    def run(self, *arguments: str, shell: str = 'exec "$0" "$@"') -> subprocess.CompletedProcess[str]:
        """`/rig/pytest`, as `shell` has it."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # for the cold way
        environment = {**os.environ, "PATH": path, "RIG_WARM": str(self.fifo), "WORD": "spoken"}
        options = ["-p", "no:cacheprovider", "-p", "no:xdist", "-c", "/dev/null", f"--rootdir={self.directory}"]
        return subprocess.run(
            ["sh", "-c", shell, DOM0 / "pytest", *options, *arguments],
            cwd=self.directory, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip


@pytest.fixture
def warm(tmp_path: Path) -> Iterator[Warm]:
    (tmp_path / "test_it.py").write_text(TESTS)
    started = Warm(tmp_path)
    yield started
    started.process.kill()
    started.process.wait()


def test_it_has_the_environment_directory_and_output_of_its_caller(warm: Warm) -> None:
    done = warm.run("-q", "-s", "test_it.py::test_passes", shell='echo before; "$0" "$@"; echo after $?')
    assert done.returncode == 0, done
    assert done.stdout.splitlines()[0] == "before"
    assert f"word is spoken in {warm.directory}" in done.stdout
    assert done.stdout.splitlines()[-1] == "after 0"


@pytest.mark.parametrize(("test", "code"), [("test_fails", 1), ("test_dies", 139), ("test_none", 4)])
def test_its_exit_code_is_that_of_pytest_or_of_the_signal(warm: Warm, test: str, code: int) -> None:
    assert warm.run(f"test_it.py::{test}").returncode == code


def test_arguments_that_are_no_text_are_pytests_to_refuse(warm: Warm) -> None:
    done = warm.run(shell='exec "$0" "$@" "$(printf "\\377")"')
    assert done.returncode == 4, done


def test_one_that_died_is_a_failure_and_nobody_waits(warm: Warm) -> None:
    (warm.directory / "conftest.py").write_text("import os, signal; os.kill(os.getppid(), signal.SIGKILL)\n")
    assert warm.run("test_it.py::test_passes").returncode == 1


def test_of_one_that_is_gone_another_is_started(warm: Warm) -> None:
    warm.process.kill()
    warm.process.wait()
    done = warm.run("-q", "test_it.py::test_passes")
    assert (done.returncode, "1 passed" in done.stdout) == (0, True), done


def test_the_next_one_is_started(warm: Warm) -> None:
    for _ in range(2):
        done = warm.run("-q", "test_it.py::test_passes")
        assert (done.returncode, "1 passed" in done.stdout) == (0, True), done
