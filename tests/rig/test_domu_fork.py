"""A Python program as a fork of the domU's agent behaves as one that was started."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.xen_rig.domu_agent.forked import is_python

REPOSITORY = Path(__file__).parents[2]
PARENT = """
import contextlib, json, os, sys
from scripts.xen_rig.domu_agent.forked import Fork
argv, merged, killed = json.loads(sys.argv[1])
fork = Fork(argv, {"MORE": "yes"}, "/", merged=merged)
if killed:
    os.kill(fork.pid, killed)
with contextlib.suppress(BrokenPipeError):  # it may have ended already
    fork.stdin.write(b"input")
fork.stdin.close()
print(json.dumps([fork.stdout.read().decode(), fork.stderr.read().decode(), fork.wait()]))
"""


def run(*argv: str, merged: bool = False, killed: int = 0) -> Any:
    """Output, errors, exit code."""
    order = json.dumps([["python3", *argv], merged, killed])
    environment = {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PARENT, order], capture_output=True, text=True, env=environment, check=True
    )
    return json.loads(done.stdout)


def test_it_has_arguments_environment_directory_and_input() -> None:
    program = "import os, sys; print(sys.argv, os.environ['MORE'], os.getcwd(), sys.stdin.read(), __name__)"
    assert run("-c", program, "one", "two") == ["['-c', 'one', 'two'] yes / input __main__\n", "", 0]


def test_it_has_none_of_the_files_of_the_agent() -> None:
    assert run("-c", "import os; print(sorted(os.listdir('/proc/self/fd')))")[0] == "['0', '1', '2', '3']\n"


def test_it_finds_what_came_after_the_agent_had_started(tmp_path: Path) -> None:
    late = tmp_path / "late"
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import json.tool, os\n"
        "from scripts.xen_rig.domu_agent.forked import Fork\n"
        "os.mkdir(sys.argv[1]); open(sys.argv[1] + '/later.py', 'w').write('print(1)')\n"
        "print(Fork(['python3', '-m', 'later'], {}, None, merged=True).stdout.read())"
    )
    environment = {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", program, late], capture_output=True, text=True, env=environment)
    assert done.stdout == "b'1\\n'\n", done.stderr


def test_a_module_is_run() -> None:
    output, _, code = run("-m", "json.tool", "--help")
    assert (output.startswith("usage: "), code) == (True, 0)


@pytest.mark.parametrize(
    ("program", "errors", "code"),
    [
        ("raise SystemExit(3)", "", 3),
        ("raise SystemExit('so it is')", "so it is\n", 1),
        ("import os; os._exit(5)", "", 5),
    ],
)
def test_its_exit_code_comes_back(program: str, errors: str, code: int) -> None:
    assert run("-c", program) == ["", errors, code]


def test_an_exception_is_a_traceback_and_code_1() -> None:
    _, errors, code = run("-c", "1 / 0")
    assert (errors.splitlines()[-1], code) == ("ZeroDivisionError: division by zero", 1)


def test_errors_go_where_output_goes_if_wanted() -> None:
    assert run("-c", "import sys; print('a', flush=True); print('b', file=sys.stderr)", merged=True)[:2] == [
        "a\nb\n",
        "",
    ]


def test_a_signal_is_its_code() -> None:
    assert run("-c", "import time; time.sleep(60)", killed=signal.SIGKILL)[2] == -signal.SIGKILL


@pytest.mark.parametrize(
    "argv", [["python3", "-X", "dev", "-m", "guest"], ["sh", "-c", "true"], ["python3", "file.py"]]
)
def test_other_programs_are_started(argv: list[str]) -> None:
    assert not is_python(argv)
