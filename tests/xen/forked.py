"""`virtio-dm` in a fork of a process that has imported it: in software emulation, its start would take seconds.

Those that a supervisor starts, and those of the bench, are started as anybody would.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Final, TextIO

from emulator.__main__ import main

PRELOADED: Final = (
    "emulator.__main__", "emulator.cli", "emulator.commands.run", "emulator.commands.supervise", "emulator.process",
    "emulator.supervisor", "emulator.xenbus", "devices.blk", "devices.net", "devices.rng", "cpp_ring.xen",
    "pytest",
)  # fmt: skip

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(list(PRELOADED))


class Fork:
    """As much of subprocess.Popen as tests/emulator/machines.py has use for."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        # A daemon, in multiprocessing's sense: a test that fails and leaves it keeps nobody from ending.
        arguments_of_it = (theirs, list(arguments), dict(environment))
        self._process = _context.Process(target=_become, args=arguments_of_it, daemon=True)
        self._process.start()
        theirs.close()
        self.stderr: TextIO = os.fdopen(os.dup(ours.fileno()), errors="replace")
        ours.close()

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


def _become(stderr: Connection, arguments: list[str], environment: dict[str, str]) -> None:
    """In the new process."""
    os.dup2(stderr.fileno(), 2)
    stderr.close()
    os.environ.update(environment)
    sys.argv = ["virtio-dm", *arguments]
    main()
