"""`virtio-dm` in a fork of a process that has imported it.

To start Python, numpy and the measuring of coverage takes longer than most tests, and in software emulation seconds.
Tests of the start itself, and what a supervisor, the demo and the bench start, start as anybody's would. The machine of
a fork runs before: a broker that it started would keep what the forks' server knows its own end by. Where nobody counts
lines, which is on Xen, a fork ends without the end of an interpreter.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import multiprocessing
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, TextIO

from emulator.__main__ import main

PRELOADED: Final = (
    "tests.forked", "emulator.cli", "emulator.commands.attach", "emulator.commands.detach", "emulator.commands.list",
    "emulator.commands.run", "emulator.commands.supervise", "emulator.commands.update", "emulator.process",
    "emulator.supervisor", "emulator.xenbus", "devices.blk", "devices.net", "devices.rng", "cpp_ring.xen",
)  # fmt: skip
NOWHERE: Final = Path(os.devnull)

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(list(PRELOADED))


class Fork:
    """One that runs: as much of subprocess.Popen as the tests have use for. What it writes goes to a file or a pipe."""

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        output: Path | Connection = NOWHERE,
        errors: Path | Connection = NOWHERE,
    ) -> None:
        arguments_of_it = (output, errors, list(arguments), dict(os.environ) | dict(environment))
        self._process = _context.Process(target=_become, args=arguments_of_it)
        self._process.start()

    @property
    def pid(self) -> int:
        pid = self._process.pid
        assert pid is not None
        return pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        """Raises TimeoutExpired."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("virtio-dm", timeout)
        return code

    def send_signal(self, number: int) -> None:
        # The server of the forks knows of an end before it says so.
        with contextlib.suppress(ProcessLookupError):
            if self.poll() is None:
                os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()


@atexit.register
def _kill_what_tests_left() -> None:
    """multiprocessing waits for them, and one that is stopped never ends."""
    for child in multiprocessing.active_children():
        child.kill()


def run(
    arguments: Sequence[str], timeout: float, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """One that ends by itself, and what it wrote.

    Raises:
        TimeoutExpired: it did not end; it is killed.
    """
    with tempfile.TemporaryDirectory(prefix="vdm-") as directory:
        output, errors = Path(directory, "output"), Path(directory, "errors")
        process = Fork(arguments, environment or {}, output, errors)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout)
            raise
        return subprocess.CompletedProcess(list(arguments), code, output.read_text(), errors.read_text())


def pipe() -> tuple[TextIO, Connection]:
    """To read from, and the end for a Fork, to be closed here when it has it."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    with ours:
        return os.fdopen(os.dup(ours.fileno()), errors="replace"), theirs


def _become(
    output: Path | Connection, errors: Path | Connection, arguments: list[str], environment: dict[str, str]
) -> None:
    """In the new process."""
    for number, target in ((1, output), (2, errors)):
        with target.open("wb") if isinstance(target, Path) else target as file:
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(environment)
    faulthandler.enable(2)  # SIGABRT for one that does not end
    sys.argv = ["virtio-dm", *arguments]
    code = 1
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    coverage = sys.modules.get("coverage")
    if counting := coverage and coverage.Coverage.current():
        # From 3.13 on, a child of multiprocessing forgets what its parent had to do at the end.
        counting.save()
        # In order, as a process of its own ends: multiprocessing would end it at once, and C would not say what it
        # counted. It takes half a second in software emulation, so only where there is something to say.
        ctypes.pythonapi.Py_Exit(code)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
