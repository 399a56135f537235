"""Python with what all runs of the tests import, which takes seconds in software emulation: a part of the saved state.

`/rig/pytest` writes its process number, its directory and arguments into FIFO; a fork then is pytest with the files and
environment of that process. FIFO.end has the exit code.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import types
from pathlib import Path
from typing import Final

IMPORTED: Final = ("click", "multiprocessing.forkserver", "numpy", "rich.console")
FIFO: Final = Path("/run/rig/pytest")


def main() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    pytest = importlib.import_module("pytest")
    pytest.main(["--version"])  # with its plugins
    gc.freeze()  # a collection would copy what the fork shares
    os.mkfifo(FIFO)
    pid, directory, *arguments = FIFO.read_text().split("\0")[:-1]
    FIFO.unlink()
    child = os.fork()
    if child == 0:
        become(Path("/proc", pid), directory, arguments)
        sys.exit(pytest.main(arguments))
    Path(f"{FIFO}.end").write_text(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF}\n")


def become(who: Path, directory: str, arguments: list[str]) -> None:
    """In the fork: as an interpreter would begin that `who` starts."""
    for number, flags in enumerate((os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)):
        os.dup2(os.open(who / f"fd/{number}", flags), number)
    for number in (signal.SIGINT, signal.SIGQUIT):  # a shell's background process ignores them
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(directory)
    os.environ.clear()
    for entry in (who / "environ").read_text().split("\0")[:-1]:
        name, _, value = entry.partition("=")
        os.environ[name] = value
    given = os.environ.get("PYTHONPATH", "").split(":")
    sys.path[:] = [directory, *given, *(path for path in sys.path[1:] if path not in given)]
    importlib.invalidate_caches()
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(write_through=True)  # type: ignore[union-attr]
    sys.modules["__main__"] = types.ModuleType("__main__")  # multiprocessing would run this file in each child
    sys.argv = ["pytest", *arguments]


if __name__ == "__main__":
    main()
