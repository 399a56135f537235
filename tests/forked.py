"""`virtio-dm` in a fork of a process that has imported it.

To start Python, numpy and the measuring of coverage takes longer than most tests, and in software emulation seconds.
Tests of the start itself, and what a supervisor, the demo and the bench start, start as anybody's would.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, TextIO

from emulator.__main__ import main

PRELOADED: Final = (
    "emulator.__main__", "emulator.cli", "emulator.commands.attach", "emulator.commands.detach",
    "emulator.commands.list", "emulator.commands.run", "emulator.commands.supervise", "emulator.commands.update",
    "emulator.process", "emulator.supervisor", "emulator.xenbus", "devices.blk", "devices.net", "devices.rng",
    "cpp_ring.xen", "pytest",
)  # fmt: skip

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(list(PRELOADED))


class Fork:
    """One that runs: as much of subprocess.Popen as the tests have use for. `output` tells to whom its own goes."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], output: Connection | None) -> None:
        self.stderr, stderr = pipe()
        # A daemon, in multiprocessing's sense: a test that fails and leaves it keeps nobody from ending.
        arguments_of_it = (output, stderr, list(arguments), dict(os.environ) | dict(environment))
        self._process = _context.Process(target=_become, args=arguments_of_it, daemon=True)
        self._process.start()
        stderr.close()

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
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()


def run(arguments: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
    """One that ends by itself, and what it wrote.

    Raises:
        TimeoutExpired: it did not end; it is killed.
    """
    output, its_output = pipe()
    process = Fork(arguments, {}, its_output)
    its_output.close()
    killer = threading.Timer(timeout, process.kill)
    killer.start()
    with output, process.stderr, ThreadPoolExecutor(1) as reader:
        written = reader.submit(output.read)
        errors = process.stderr.read()
        done = subprocess.CompletedProcess(list(arguments), process.wait(timeout), written.result(), errors)
    killer.cancel()
    if done.returncode == -signal.SIGKILL:
        raise subprocess.TimeoutExpired(list(arguments), timeout, written.result(), errors)
    return done


def pipe() -> tuple[TextIO, Connection]:
    """To read from, and the end for a Fork, to be closed here when it has it."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    with ours:
        return os.fdopen(os.dup(ours.fileno()), errors="replace"), theirs


def _become(output: Connection | None, stderr: Connection, arguments: list[str], environment: dict[str, str]) -> None:
    """In the new process."""
    with Path(os.devnull).open("w") as nowhere:
        os.dup2((output or nowhere).fileno(), 1)
    os.dup2(stderr.fileno(), 2)
    if output:
        output.close()
    stderr.close()
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["virtio-dm", *arguments]
    code = 1
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    _save_counted_lines()
    # In order, as a process of its own ends: multiprocessing would end it at once, and C would not say what it counted.
    ctypes.pythonapi.Py_Exit(code)


def _save_counted_lines() -> None:
    """Newer Pythons forget in a child what was to be done at the end."""
    coverage = sys.modules.get("coverage")
    if counting := coverage and coverage.Coverage.current():
        counting.save()
