"""The parts of the tests, each in a machine of its own, those of one CPU side by side.

A machine of two CPUs is for tests in which dom0 and a domU must run at the same time, or which are much faster so. It
gets slow out of all proportion when its host has less than two for it. One of one CPU does as much in the time
(docs/rig.md).
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Final

from scripts.xen_rig.host import say, tool

CPUS: Final = {"pv": 1, "pvh": 1, "two-cpus": 2}
"""Part -> CPUs of its machine. tests/xen/conftest.py says what is in which."""
TURNS: Final = (("pv", "pvh"), ("two-cpus",))
NO_TESTS: Final = 5
"""pytest's exit code when nothing was selected."""


def run(arguments: Sequence[str]) -> int:
    """All of them. `arguments`: those of `xen-rig test`. The highest exit code, but for parts with nothing to run."""
    codes: dict[str, int] = {}
    for turn in TURNS:
        codes |= _side_by_side(turn, arguments)
    counted = [code for code in codes.values() if code != NO_TESTS]
    if any(counted):
        say("exit codes: " + ", ".join(f"{part} {code}" for part, code in codes.items()))
    return max(counted, default=NO_TESTS)


def _side_by_side(turn: Sequence[str], arguments: Sequence[str]) -> dict[str, int]:
    """The output of the first as it comes, that of the others when it is their turn."""
    with contextlib.ExitStack() as stack:
        started: list[tuple[str, subprocess.Popen[bytes], IO[bytes] | None]] = []
        for part in turn:
            output: IO[bytes] | None = stack.enter_context(tempfile.TemporaryFile()) if started else None
            process = stack.enter_context(running(["test", "--part", part, *arguments], output))
            started.append((part, process, output))
        for _, process, output in started:
            process.wait()
            if output is not None:
                output.seek(0)
                shutil.copyfileobj(output, sys.stdout.buffer)
                sys.stdout.buffer.flush()
        return {part: _exit_code(process.returncode) for part, process, _ in started}


def _exit_code(code: int) -> int:
    """Of one that a signal ended as a shell has it."""
    return code if code >= 0 else 128 - code


@contextlib.contextmanager
def running(arguments: Sequence[str], output: IO[bytes] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """`xen-rig` with these arguments, as a process of its own; it ends, and its machine, if this does."""
    command = [tool("setpriv"), "--pdeathsig", "TERM", "--", sys.executable, "-m", "scripts.xen_rig", *arguments]
    process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
