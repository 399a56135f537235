"""The bench measures what it says, in the format that is promised, and says clearly when it cannot."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import threading
from mmap import mmap
from pathlib import Path

import pytest

from cpp_ring import LatencyRecorder, PingPong, xen
from cpp_ring.store import StoreError
from emulator import cli
from emulator.bench import vhost_user
from emulator.bench.command import _written as written
from emulator.bench.errors import ProcessFailed
from emulator.bench.plot import plot
from emulator.bench.rows import LIMIT, Row, human, targets
from emulator.cpus import allowed, choose_pair
from emulator.exit_codes import ExitCode, Failure
from emulator.guest_process import GuestFailed, GuestProcess, GuestTimedOut
from emulator.local import MachineError

ROWS = {
    LIMIT,
    "config.get",
    "config.get.256",
    "config.set.python",
    "config.get.python",
    "config.get.asleep",
    "probe.blk",
    "blk.read.4k",
    "emulator.start",
    "emulator.pss",
    "peer.eventfd",
    "peer.unix-socket",
    "peer.pipe",
}


def row(name: str, *values: int, unit: str = "ns") -> Row:
    recorder = LatencyRecorder()
    for value in values:
        recorder.record(value)
    return Row(name, unit, recorder)


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "emulator", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="the bench needs two cores")
def test_a_run_gives_every_row_as_table_json_and_plot(tmp_path: Path) -> None:
    done = bench("--count", "1000", "--json", str(tmp_path / "b.json"), "--plot", str(tmp_path / "b.svg"))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "b.json").read_text())
    expected = ROWS | ({"peer.vhost-user"} if vhost_user.installed() else set())
    assert {entry["name"] for entry in result["rows"]} == expected
    assert {"cpu", "cores", "cpus", "kernel", "python"} <= result["machine"].keys()
    pair = choose_pair(allowed())
    assert (result["machine"]["frontend-cpu"], result["machine"]["backend-cpu"]) == (pair.first, pair.second)
    assert result["machine"]["smt-siblings"] in ("no", "yes", "unknown")
    limit = next(entry for entry in result["rows"] if entry["name"] == LIMIT)
    for entry in result["rows"]:
        assert set(entry) == {"name", "unit", "count", "min", "p50", "p99", "p99.9", "ratio"}
        assert entry["count"] >= 10
        assert 0 < entry["min"] <= entry["p50"] <= entry["p99"] <= entry["p99.9"]
        assert entry["name"] in done.stdout
        if entry["unit"] == "ns":
            assert entry["ratio"] == pytest.approx(entry["p50"] / limit["p50"], abs=0.001)
        else:
            assert (entry["name"], entry["unit"], entry["ratio"]) == ("emulator.pss", "bytes", None)
    assert "config.get.asleep" in (tmp_path / "b.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--count", "10"), "count"),
        (("--json", "/no/such/directory/b.json"), "no directory '/no/such/directory'"),
        (("--plot", "/no/such/directory/b.svg"), "no directory '/no/such/directory'"),
        (("--hypervisor", "xen"), "--domid N"),
        (("--hypervisor", "xen", "--domid", "3"), "--guest 'ssh domu python3 -m guest agent'"),
        (("--hypervisor", "xen", "--domid", "3", "--guest", " "), "the command is empty"),
        (("--hypervisor", "xen", "--domid", "3", "--guest", "ssh 'domu"), "is no command"),
        (("--hypervisor", "xen", "--domid", "0", "--guest", "ssh domu"), "domid"),
        (("--poll-us", "100"), "--poll-us goes with --module"),
        (("--hypervisor", "local", "--domid", "3"), "--domid, --guest and --module are for --hypervisor xen"),
        (("--hypervisor", "local", "--guest", "ssh domu"), "--domid, --guest and --module are for --hypervisor xen"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_measured(arguments: tuple[str, ...], says: str) -> None:
    done = bench(*arguments)
    assert done.returncode == 2
    assert says in done.stderr.replace("\n", " ")


@pytest.mark.skipif(xen.store_path() is not None, reason="this is a Xen host")
def test_a_bench_on_xen_without_xen_says_so_in_one_line() -> None:
    done = bench("--hypervisor", "xen", "--domid", "3", "--guest", "ssh domu")
    assert done.returncode == ExitCode.NO_HYPERVISOR
    assert re.fullmatch(r"virtio-dm: no Xen here: [^\n]*\n", done.stderr), done.stderr


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["/no/such/command"], "No such file"),
        (["sh", "-c", "exit 3"], "the guest ended"),
        (["sh", "-c", "echo welcome; cat >/dev/null"], "is no answer of a guest"),
    ],
)
def test_a_command_that_starts_no_guest_is_said(command: list[str], says: str) -> None:
    with pytest.raises((GuestFailed, OSError), match=says), GuestProcess("xen", 1, command=command) as guest:
        guest.request("about")


def test_an_answer_that_nobody_waited_for_is_not_taken_for_the_next_one(tmp_path: Path) -> None:
    agent = tmp_path / "agent.py"
    agent.write_text(
        "import json, sys\n"
        "first = json.loads(input())\n"
        "second = json.loads(input())\n"
        "for command in (first, second):\n"
        "    print(json.dumps({'ok': True, 'id': command['id'], 'op': command['op']}), flush=True)\n"
        "sys.stdin.read()\n"
    )
    with GuestProcess("xen", 1, command=[sys.executable, str(agent)]) as guest:
        with pytest.raises(GuestTimedOut):
            guest.request("slow", answer_within=0.01)
        assert guest.request("quick") == {"op": "quick"}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ProcessFailed("the emulator of domain 1 ended"), ExitCode.PROCESS_FAILED),
        (GuestFailed("the guest ended"), ExitCode.PROCESS_FAILED),
        (ConnectionResetError("gone"), ExitCode.PROCESS_FAILED),
        (EOFError("gone"), ExitCode.PROCESS_FAILED),
        (GuestTimedOut("no answer"), ExitCode.TIMED_OUT),
        (TimeoutError("not ready"), ExitCode.TIMED_OUT),
        (StoreError(errno.ECONNRESET, "gone"), ExitCode.HYPERVISOR_LOST),
        (MachineError(errno.ENOENT, "no local machine"), ExitCode.NO_HYPERVISOR),
        (PermissionError(errno.EPERM, "not permitted"), ExitCode.NOT_PERMITTED),
        (FileNotFoundError(errno.ENOENT, "no such file"), ExitCode.MISSING_FILE),
    ],
)
def test_what_can_go_wrong_with_a_run_has_a_code_of_its_own(
    error: Exception, code: ExitCode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("emulator.bench.run.run", fail)
    with pytest.raises(SystemExit) as end:
        cli.run(["bench", "--hypervisor", "local"])
    assert end.value.code == code
    assert re.fullmatch(r"virtio-dm: the bench failed: [^\n]*\n", capsys.readouterr().err)


def test_a_fault_of_the_bench_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr("emulator.bench.run.run", fail)
    with pytest.raises(RuntimeError, match="a fault"):
        cli.run(["bench", "--hypervisor", "local"])


def test_one_cpu_is_not_enough_and_that_is_said_in_one_line() -> None:
    command = [sys.executable, "-m", "emulator", "bench", "--hypervisor", "local"]
    one = min(os.sched_getaffinity(0))
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, preexec_fn=lambda: os.sched_setaffinity(0, {one})
    )
    assert done.returncode == ExitCode.UNFIT_MACHINE
    assert re.fullmatch(r"virtio-dm: the bench needs two CPUs[^\n]*\n", done.stderr), done.stderr


def test_a_file_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=f"cannot write {tmp_path}: is a directory") as refusal, written(tmp_path):
        tmp_path.write_text("")
    assert refusal.value.code is ExitCode.MISSING_FILE


def test_a_page_of_memory_that_two_sides_see_is_measured() -> None:
    memory = mmap(-1, 4096)
    here, there = PingPong(memory), PingPong(memoryview(memory))
    recorder = LatencyRecorder()
    served: list[bool] = []
    server = threading.Thread(target=lambda: served.append(there.serve(100)))
    server.start()
    measured = here.measure(100, recorder)
    server.join()
    assert (measured, served, recorder.count) == (True, [True], 100)


@pytest.mark.parametrize("memory", [bytearray(127), memoryview(bytearray(4097))[1:1]])
def test_memory_too_small_for_a_ping_pong_is_refused(memory: bytearray | memoryview) -> None:
    with pytest.raises(ValueError, match="two cache lines"):
        PingPong(memory)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "ns", "0 ns"),
        (999, "ns", "999 ns"),
        (1000, "ns", "1.0 us"),
        (123_456, "ns", "123 us"),
        (2_500_000_000, "ns", "2.5 s"),
        (12_345_678, "bytes", "12.3 MB"),
        (999_000_000, "B/s", "999 MB/s"),
    ],
)
def test_figures_are_written_for_people(value: int, unit: str, text: str) -> None:
    assert human(value, unit) == text


def test_targets_are_judged_by_p50_and_left_out_when_a_row_is_missing() -> None:
    rows = {
        entry.name: entry
        for entry in (
            row(LIMIT, 100),
            row("config.get", 120),
            row("config.get.256", 200),
            row("config.set.python", 1000),
            row("config.get.asleep", 30_000),
            row("peer.eventfd", 20_000),
            row("peer.unix-socket", 5_000),
            row("emulator.start", 200_000_000),
            row("emulator.pss", 15_000_000, unit="bytes"),
        )
    }
    verdicts = {target.text.split()[0]: target.met for target in targets(rows)}
    assert verdicts == {
        "config.get": True,
        "config.get.256": False,
        "config.set.python": True,
        "config.get.asleep": False,
        "peer.unix-socket": False,
        "emulator.start,": True,
        "emulator.pss,": True,
    }


def test_targets_on_xen_are_those_of_its_own_peers() -> None:
    probe = row("probe.blk", 40_000)
    probe.accesses = 20
    rows = {
        entry.name: entry
        for entry in (
            row(LIMIT, 100),
            row("config.get", 150),
            row("config.get.asleep", 60_000),
            probe,
            row("peer.evtchn", 80_000),
            row("peer.xenvchan.awake", 2900),
            row("peer.xenvchan.asleep", 130_000),
        )
    }
    assert {target.text: target.met for target in targets(rows)} == {
        f"config.get / {LIMIT}": True,
        "config.get / peer.xenvchan.awake": False,
        "config.get.asleep / peer.xenvchan.asleep": True,
        "probe.blk / (20 accesses x config.get)": False,
    }


def test_targets_of_a_guests_kernel_are_against_the_same_row_of_its_peer() -> None:
    rows = {
        entry.name: entry
        for entry in (
            row("guest.probe", 1),
            row("guest.read.4k.d1", 110),
            row("peer.blkback.read.4k.d1", 100),
            row("peer.qdisk.read.4k.d1", 200),
            row("guest.write.64k", 390, unit="B/s"),
            row("peer.qdisk.write.64k", 200, unit="B/s"),
            row("guest.tcp.stream", 60, unit="B/s"),
            row("peer.netback.tcp.stream", 100, unit="B/s"),
        )
    }
    assert {target.text: target.met for target in targets(rows)} == {
        "guest.read.4k.d1 / peer.qdisk.read.4k.d1": False,
        "guest.read.4k.d1 / peer.blkback.read.4k.d1": True,
        "guest.write.64k / peer.qdisk.write.64k": False,
        "guest.tcp.stream / peer.netback.tcp.stream": True,
    }


def test_the_plot_draws_time_rows_only(tmp_path: Path) -> None:
    plot([row(LIMIT, 100, 200), row("emulator.pss", 5, unit="bytes"), row("empty")], tmp_path / "p.svg")
    drawn = (tmp_path / "p.svg").read_text()
    assert LIMIT in drawn
    assert "emulator.pss" not in drawn
