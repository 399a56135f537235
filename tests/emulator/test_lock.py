"""One process for one job, and asking who it is disturbs nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from emulator import lock
from emulator.exit_codes import ExitCode, Failure


def test_a_lock_is_taken_once_and_names_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.lock"
    assert lock.holder(path) is None
    held = lock.take(path, "does it")
    assert lock.holder(path) == os.getpid()
    with pytest.raises(Failure, match=f"process {os.getpid()} does it already") as refusal:
        lock.take(path, "does it")
    assert refusal.value.code is ExitCode.ALREADY_RUNNING
    os.close(held)
    assert lock.holder(path) is None
    os.close(lock.take(path, "does it"))


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    program = f"import os, pathlib; from emulator import lock; lock.take(pathlib.Path({str(path)!r}), ''); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 9
    assert lock.holder(path) is None
    os.close(lock.take(path, "does it"))


def test_a_lock_is_not_taken_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "a.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(Failure, match="cannot open the lock") as refusal:
        lock.take(tmp_path / "a.lock", "does it")
    assert refusal.value.code is ExitCode.NOT_PERMITTED
    assert lock.holder(tmp_path / "a.lock") is None
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_lock_with_rubbish_in_it_has_an_unknown_holder(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    held = lock.take(path, "does it")
    path.write_text("rubbish")
    assert lock.holder(path) is None
    with pytest.raises(Failure, match="process unknown"):
        lock.take(path, "does it")
    os.close(held)
