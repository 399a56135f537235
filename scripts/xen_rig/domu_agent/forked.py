"""Python programs as forks of the agent: the start of a Python with its imports takes seconds in software emulation."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import resource
import runpy
import sys
import traceback
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

# What programs of ours import, so that a spare domU has it already.
PRELOADED: Final = (
    "argparse", "base64", "dataclasses", "enum", "errno", "hashlib", "inspect", "json", "pathlib", "platform", "select",
    "signal", "socket", "struct", "subprocess", "threading", "typing", "urllib.parse",
)  # fmt: skip
OURS: Final = "guest.agent"
"""Comes into the domU later than the agent."""


def is_python(argv: Sequence[str]) -> bool:
    """Whether `argv` is a program that `Fork` can run."""
    return len(argv) > 2 and argv[0] == "python3" and argv[1] in ("-c", "-m")


def preload() -> None:
    for name in PRELOADED:
        importlib.import_module(name)


class Fork:
    """As much of subprocess.Popen as the agent has use for."""

    def __init__(
        self, argv: Sequence[str], environment: Mapping[str, str], directory: str | None, *, merged: bool
    ) -> None:
        """`merged`: its errors go where its output goes. Raises OSError."""
        if OURS not in sys.modules:
            importlib.invalidate_caches()  # Python looks at a directory that was not there only once
            with contextlib.suppress(ImportError):
                importlib.import_module(OURS)
        if directory is not None:
            Path(directory).stat()
        (child_in, stdin), (stdout, child_out), (stderr, child_err) = os.pipe(), os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _become(argv, environment, directory, (child_in, child_out, child_out if merged else child_err))
        for descriptor in (child_in, child_out, child_err):
            os.close(descriptor)
        self.stdin = os.fdopen(stdin, "wb", buffering=0)
        self.stdout = os.fdopen(stdout, "rb", buffering=0)
        self.stderr = os.fdopen(stderr, "rb", buffering=0)
        self._code: int | None = None

    def wait(self) -> int:
        if self._code is None:
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._code


def _become(
    argv: Sequence[str], environment: Mapping[str, str], directory: str | None, streams: Sequence[int]
) -> NoReturn:
    """In the new process."""
    code: object = 1
    try:
        os.setsid()
        atexit._clear()
        for number, descriptor in enumerate(streams):
            os.dup2(descriptor, number)
        os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])  # the agent's, and with them its channel
        os.environ.update(environment)
        if directory is not None:
            os.chdir(directory)
        _run(argv)
        code = 0
    except SystemExit as end:
        code = 0 if end.code is None else end.code
        if not isinstance(code, int):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()
        sys.stdout.flush()
    os._exit(code & 0xFF if isinstance(code, int) else 1)


def _run(argv: Sequence[str]) -> None:
    if argv[1] == "-m":
        sys.argv = ["-m", *argv[3:]]
        runpy.run_module(argv[2], run_name="__main__", alter_sys=True)
    else:
        sys.argv = ["-c", *argv[3:]]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(argv[2], "<string>", "exec", dont_inherit=True), main.__dict__)
