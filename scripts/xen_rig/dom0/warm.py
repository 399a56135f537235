"""Python with what all runs of the tests import, which takes seconds in software emulation: a part of the saved state.

`/rig/pytest` writes its process number, its directory and arguments into the FIFO that the argument names; a fork then
is pytest with the output and environment of that process. Another FIFO, with `.end`, gets the exit code.
"""

from __future__ import annotations

import gc
import importlib
import io
import os
import signal
import sys
import types
from pathlib import Path
from typing import Final

IMPORTED: Final = ("click", "multiprocessing.forkserver", "numpy", "rich.console")


def main(fifo: Path) -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    pytest = importlib.import_module("pytest")
    pytest.main(["--version", "--version"])  # said once, it would load no plugin
    gc.freeze()  # a collection would copy what the fork shares
    os.mkfifo(fifo)
    pid, directory, *arguments = fifo.read_text(errors="surrogateescape").split("\0")[:-1]
    fifo.unlink()
    with Path(f"{fifo}.end").open("w") as end:  # from here on, so that it ends if this does
        child = os.fork()
        if child == 0:
            end.close()
            become(Path("/proc", pid), directory, arguments)
            sys.exit(pytest.main(arguments))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(code if code >= 0 else 128 - code, file=end)


def become(who: Path, directory: str, arguments: list[str]) -> None:
    """In the fork: as an interpreter would begin that `who` starts."""
    for number in (1, 2):
        descriptor = os.open(who / f"fd/{number}", os.O_WRONLY)
        os.dup2(descriptor, number)
        os.close(descriptor)
    # A shell's background process ignores them.
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(directory)
    os.environ.clear()
    for entry in (who / "environ").read_text(errors="surrogateescape").split("\0")[:-1]:
        name, _, value = entry.partition("=")
        os.environ[name] = value
    given = [path for path in os.environ.get("PYTHONPATH", "").split(":") if path]
    first = [] if os.environ.get("PYTHONSAFEPATH") else [directory]
    sys.path[:] = [*first, *given, *(path for path in sys.path[1:] if path not in given)]
    importlib.invalidate_caches()
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(write_through=True)
    sys.modules["__main__"] = types.ModuleType("__main__")  # multiprocessing would run this file in each child
    sys.argv = ["pytest", *arguments]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
