"""xenstored ends. Nothing brings back what it knew, so this is the last thing that the rig does."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from emulator.exit_codes import ExitCode
from tests import forked
from tests.emulator.machines import Process
from tests.xen.domu import Domu
from tests.xen.serving import Emulator

PID = Path("/run/xen/xenstored.pid")


@pytest.mark.last
@pytest.mark.parametrize(
    "which",
    [
        pytest.param("oxenstored", marks=pytest.mark.part("pv")),
        pytest.param("xenstored", marks=pytest.mark.part("two-cpus")),  # the one in C
    ],
)
def test_whoever_needs_the_store_says_that_it_is_gone_and_ends(which: str, other: Domu) -> None:
    emulator = Emulator(other, "rng")
    supervisor = Process("supervise", "--hypervisor", "xen")
    supervisor.await_line("watching the domains")
    guest = other.agent()
    guest("connect", dev=0)
    pid = int(PID.read_text())
    program = Path(f"/proc/{pid}/exe").readlink()
    assert program.name == which
    os.kill(pid, signal.SIGKILL)
    for process in (emulator, supervisor):
        assert process.wait() == ExitCode.HYPERVISOR_LOST, process.lines
        said = [line for line in process.lines if "the store is gone" in line]
        assert (len(said), "the host has to be started again" in said[0]) == (1, True), process.lines
        assert not [line for line in process.lines if "Traceback" in line], "\n".join(process.lines)
    if which == "oxenstored":  # once is enough of ten seconds in which nobody answers a guest
        guest.send("rng", dev=0, size=16)
        answer = guest.receive(timeout=60.0)
        assert (answer["ok"], answer["kind"]) == (False, "StoreError"), answer
        assert "no answer in 10 s: does xenstored run, and has it since this domain began?" in answer["error"]
    # A new one knows of no domain but dom0, and does no harm to those that run.
    subprocess.run([program, "--pid-file", PID], check=True)
    subprocess.run(["xen-init-dom0"], check=True, capture_output=True)
    done = forked.run(["run", "--domid", str(other.domid)], timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (ExitCode.NO_DOMAIN, 1), done.stderr
    assert f"no domain {other.domid} on xen" in done.stderr
    assert other.run(["echo", "alive"]).output == "alive\n"
