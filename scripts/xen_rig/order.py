"""What dom0 is to do in one run: a directory that it sees as /rig/host."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from scripts.xen_rig.errors import RigError

Command = Callable[[Path], str]

ENVIRONMENT = {
    "PATH": "/rig/site/bin:/usr/lib/xen-tools:/usr/local/sbin:/usr/sbin:/usr/bin",
    "PYTHONPATH": "/rig/site/package:/rig/site/tree:/rig/libraries",
    "PYTHONSAFEPATH": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
    # numpy's linear algebra would start a thread a core at import.
    "OPENBLAS_NUM_THREADS": "1",
}
CPUS = "RIG_CPUS"
TREE = "/rig/site/tree"
TESTS = f"{TREE}/tests/xen"
HANGS = 900
"""Seconds, of one test: several times the patience of what it waits for."""
TEST_COMMAND = (
    "/rig/pytest", "-o", "cache_dir=/tmp/pytest", f"--rootdir={TREE}", "-c", f"{TREE}/pyproject.toml",
    f"--confcutdir={TESTS}",
    # A test that hangs, in a call without a deadline, says where.
    "-o", f"faulthandler_timeout={HANGS}", "-o", "faulthandler_exit_on_timeout=true",
)  # fmt: skip


def write(directory: Path, command: str, cpus: int) -> None:
    """`command`: of a shell, in the shared directory. `cpus`: of the machine."""
    settings = {**ENVIRONMENT, CPUS: str(cpus)}
    if sys.stdout.isatty():
        columns, lines = shutil.get_terminal_size()
        settings |= {"TERM": os.environ.get("TERM", "dumb"), "FORCE_COLOR": "1"}
        settings |= {"COLUMNS": str(columns), "LINES": str(lines)}
    assignments = [f"{name}={shlex.quote(value)}\n" for name, value in settings.items()]
    (directory / "environment").write_text("".join(assignments))
    (directory / "run").write_text(command + "\n")


def script(directory: Path, path: Path, arguments: Sequence[str]) -> str:
    """The command that runs a file of the host; one without #! is bash's."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RigError(f"{path}: {error.strerror}: name a script of this machine") from error
    copy = directory / path.name
    copy.write_bytes(content)
    copy.chmod(0o755)
    interpreter = [] if content.startswith((b"#!", b"\x7fELF")) else ["bash"]
    return "exec " + shlex.join([*interpreter, f"/rig/host/{path.name}", *arguments])


def tests(part: str, arguments: Sequence[str]) -> str:
    """The command that runs a part of the Xen tests with arguments of pytest; paths among them are the repository's."""
    named = any(not argument.startswith("-") and argument.split("::")[0].startswith("tests/") for argument in arguments)
    command = [*TEST_COMMAND, f"--part={part}", *arguments, *([] if named else [TESTS])]
    return f"cd {TREE} && exec " + shlex.join(command)
