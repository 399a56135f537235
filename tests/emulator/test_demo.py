"""The demo as a user runs it, what it says when something is not as claimed, and that it leaves nothing behind."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from cpp_ring import LatencyRecorder
from emulator.demo import image, steps
from emulator.demo.histogram import bar, buckets
from emulator.demo.interrupts import Interrupts
from emulator.demo.play import play
from emulator.demo.screen import Screen
from emulator.demo.stage import Stage
from emulator.demo.steps import STEPS, Demo, NotAsClaimed, Step
from emulator.exit_codes import ExitCode, Failure
from emulator.guest_process import GuestFailed

COMMAND = [sys.executable, "-P", "-m", "emulator", "demo"]
DEADLINE = 240.0
NAMES = [step.name for step in STEPS]


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A TMPDIR, short for the sake of sockets."""
    path = Path(tempfile.mkdtemp(prefix="vdm-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def processes_of(temporary: Path) -> dict[int, str]:
    """The processes that run with this TMPDIR, each with its command line."""
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if f"TMPDIR={temporary}".encode() in (directory / "environ").read_bytes().split(b"\0"):
                found[int(directory.name)] = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # it ended, or is another user's
    return found


def assert_nothing_left(temporary: Path) -> None:
    deadline = time.monotonic() + DEADLINE
    while (left := processes_of(temporary)) and time.monotonic() < deadline:
        time.sleep(0.05)  # what was killed is there until init has seen it
    assert left == {}
    assert list(temporary.iterdir()) == []


def environment(temporary: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(temporary), "TERM": "xterm-256color"}


def start(temporary: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        COMMAND, env=environment(temporary), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def read_until(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"{text!r} is not in {seen}")


def test_every_step_is_shown_and_as_claimed_and_nothing_is_left_behind(temporary: Path) -> None:
    # Fewer than a person gets: each line of the guest is counted here.
    command = [*COMMAND, "--races", "12345"]
    ended = subprocess.run(command, env=environment(temporary), capture_output=True, text=True, timeout=DEADLINE)
    assert ended.returncode == ExitCode.OK, ended.stdout + ended.stderr
    assert ended.stderr == ""
    lines = ended.stdout.splitlines()
    assert [line.split("s  ", 1)[1] for line in lines if line.startswith("ok ")] == [step.title for step in STEPS]
    rows = [[cell.strip() for cell in re.split("[│|]", line)[1:-1]] for line in lines]
    results = [(row[0], row[2]) for row in rows if len(row) == 4 and row[2]]
    assert results == [(name, "ok") for name in NAMES]
    shown = " ".join(row[1] for row in rows if len(row) == 4)
    for text in ("SHA-256", "killed", "256 frames each way", "12,345 writes", "no stale value", "72 to 104 MiB", "p50"):
        assert text in shown
    assert "FAILED" not in ended.stdout
    assert all(len(line) <= 80 for line in lines)
    assert_nothing_left(temporary)


def test_ctrl_c_in_the_middle_leaves_nothing_behind(temporary: Path) -> None:
    terminal, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    process = subprocess.Popen(
        COMMAND,
        env=environment(temporary),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(slave)
    output = b""
    try:
        while steps_ended(output) < 3:
            output += os.read(terminal, 4096)
        os.write(terminal, b"\x03")
        output += read_to_end(terminal)
        assert process.wait(DEADLINE) == ExitCode.INTERRUPTED
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    assert b"interrupted" in output
    assert b"Traceback" not in output
    assert "━".encode() in output
    assert_nothing_left(temporary)


def read_to_end(terminal: int) -> bytes:
    output = b""
    with contextlib.suppress(OSError):  # EIO: nobody holds the other side any more
        while data := os.read(terminal, 4096):
            output += data
    return output


def steps_ended(output: bytes) -> int:
    return len(re.findall(rb"ok\x1b\[0m +\d+\.\d s", output))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_middle_leaves_nothing_behind(temporary: Path, number: signal.Signals) -> None:
    with start(temporary) as process:
        read_until(process, STEPS[1].title)
        process.send_signal(number)
        process.send_signal(number)  # one more does not cut short what the first one began
        rest = process.communicate(timeout=DEADLINE)[0]
    assert process.returncode == 128 + number
    assert ExitCode(process.returncode)
    assert "Traceback" not in rest
    assert_nothing_left(temporary)


def test_a_machine_that_dies_ends_the_demo_in_failure_and_nothing_is_left_behind(temporary: Path) -> None:
    with start(temporary) as process:
        read_until(process, STEPS[2].title)
        [broker] = [pid for pid, line in processes_of(temporary).items() if " local demo " in line]
        os.kill(broker, signal.SIGKILL)
        rest = process.communicate(timeout=DEADLINE)[0]
    assert process.returncode == ExitCode.INTERNAL
    assert "FAILED" in rest
    assert "the last lines of the log" in rest
    assert "Traceback" not in rest
    assert_nothing_left(temporary)


def test_a_temporary_directory_too_deep_for_sockets_is_refused(temporary: Path) -> None:
    deep = temporary / ("d" * 80)
    deep.mkdir()
    ended = subprocess.run(COMMAND, env=environment(deep), capture_output=True, text=True, timeout=DEADLINE)
    assert ended.returncode == ExitCode.USAGE
    assert "TMPDIR" in ended.stderr
    deep.rmdir()
    assert_nothing_left(temporary)


def test_a_missing_mke2fs_is_one_line_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(image, "_SBIN", ())
    with pytest.raises(Failure, match="apt-get install e2fsprogs") as caught:
        image.find_mke2fs()
    assert caught.value.code is ExitCode.NOT_INSTALLED


def test_mke2fs_is_found_where_path_does_not_lead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert image.find_mke2fs().name == "mke2fs"


def test_a_mke2fs_that_fails_is_reported_with_its_reason(tmp_path: Path) -> None:
    broken = tmp_path / "mke2fs"
    broken.write_text("#!/bin/sh\necho no room >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(Failure, match="no room"):
        image.make(broken, tmp_path, ignore)


# ---- Guests that do not see what they should ---------------------------------------------------------------------


class LyingGuest:
    """Answers as it is told to."""

    def __init__(self, **answers: dict[str, Any]) -> None:
        self._answers = answers

    def request(self, op: str, **_: Any) -> dict[str, Any]:
        return self._answers.get(op, {})


class FakeStage:
    """A stage with this guest in both domains and nothing that runs."""

    def __init__(self, directory: Path, guest: LyingGuest) -> None:
        self.directory = directory
        self.guests = dict.fromkeys((1, 2), guest)

    def start_guest(self, domid: int) -> None: ...

    def start_update(self, *_: Any, **__: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["true"])

    def emulator_pid(self, domid: int) -> int:
        return NO_PROCESS + domid

    def close(self) -> None: ...


def ignore(_: object) -> None:
    """For progress that nobody looks at."""


def ignore_all(*_: object) -> None:
    """For a kill that must not happen."""


NO_PROCESS = 1 << 30
DEVICES = {(1, "blk"): 0, (1, "net"): 1, (1, "rng"): 2, (2, "net"): 0, (2, "rng"): 1}
FOUND = {"capacity": 2048, "mac": "52:54:00:00:00:01", "device_id": 2, "features": [], "queues": []}
RANDOM = {"data": bytes(range(256)).hex() * 1024}
ZEROES = {"data": base64.b64encode(bytes(steps.PATTERN_BYTES)).decode()}


@pytest.fixture
def demo_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Demo]:
    """Makes a demo in the middle, whose guests give these answers."""
    monkeypatch.setattr(os, "kill", ignore_all)

    def make(**answers: Any) -> Demo:
        demo = Demo(cast(Stage, FakeStage(tmp_path, LyingGuest(**answers))), Path("mke2fs"), ignore, 5_001)
        (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
        demo._image = image.Image(tmp_path / "disk.img", tmp_path, 1)
        demo._numbers = dict(DEVICES)
        demo._found = {key: dict(FOUND) for key in DEVICES}
        return demo

    return make


@pytest.mark.parametrize(
    ("step", "answers", "reason"),
    [
        (Demo.probe, {"connect": {**FOUND, "device_id": 3}}, "id 3 is no blk"),
        (Demo.read_back, {"blk_read": {"data": base64.b64encode(b"x" * (1 << 20)).decode()}}, "SHA-256 .* in the file"),
        (Demo.restart, {"blk_read": ZEROES}, "not on the disk"),
        (Demo.frames, {"rng": {"data": "00" * 1_000_000}}, "not random"),
        (Demo.frames, {"rng": RANDOM, "net_receive": {"frame": None}}, "did not arrive"),
        (Demo.frames, {"rng": RANDOM, "net_receive": {"frame": "00"}}, "arrived changed"),
        (Demo.race, {"config_race": {"stale": 1}}, "what was there before"),
        (Demo.resize, {"wait_config_change": {"changed": False}}, "not told"),
        (Demo.resize, {"wait_config_change": {"changed": True, "capacity": 2048}}, "1048576 bytes, not"),
    ],
)
def test_a_guest_that_sees_something_else_fails_the_step(
    demo_with: Callable[..., Demo], step: Callable[[Demo, steps.Progress], str], answers: dict[str, Any], reason: str
) -> None:
    with pytest.raises(NotAsClaimed, match=reason):
        step(demo_with(**answers), ignore)


@pytest.mark.parametrize(
    ("change", "reason"),
    [({1: 10, 2: 20}, "still served by process 10"), ({1: 11, 2: 21}, "domain 2 was restarted too")],
)
def test_an_emulator_that_was_not_replaced_alone_fails_the_restart(
    demo_with: Callable[..., Demo], monkeypatch: pytest.MonkeyPatch, change: dict[int, int], reason: str
) -> None:
    demo = demo_with(blk_read={"data": ""})
    pids = iter([10, 20, change[1], change[2]])
    monkeypatch.setattr(demo._stage, "emulator_pid", lambda _: next(pids))
    monkeypatch.setattr(os, "urandom", lambda _: b"")
    with pytest.raises(NotAsClaimed, match=reason):
        demo.restart(ignore)


def test_something_left_behind_fails_the_last_step(demo_with: Callable[..., Demo], tmp_path: Path) -> None:
    with pytest.raises(NotAsClaimed, match=f"{tmp_path} is still there"):
        demo_with().stop(ignore)


def test_the_demo_ends_at_the_first_step_that_fails(demo_with: Callable[..., Demo]) -> None:
    def fail(_demo: Demo, _progress: steps.Progress) -> str:
        raise GuestFailed("no such device")

    fine = Step("fine", "Do nothing", lambda _demo, _progress: "nothing")
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        results = play(demo_with(), [fine, Step("bad", "Fail", fail), fine], Screen(Console(file=nowhere)))
    assert [(result.name, result.text, result.ok) for result in results] == [
        ("fine", "nothing", True),
        ("bad", "no such device", False),
    ]


# ---- Small parts -------------------------------------------------------------------------------------------------


def test_a_signal_waits_for_the_end_of_what_must_not_be_cut_short() -> None:
    reached = []
    before = signal.getsignal(signal.SIGTERM)

    def work(interrupts: Interrupts) -> None:
        with interrupts.held():
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append("the end of what is held")
        reached.append("what comes after it")

    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt):
        work(interrupts)
    assert reached == ["the end of what is held"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_only_the_first_signal_interrupts() -> None:
    with Interrupts():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGINT)


def test_no_signal_interrupts_the_cleaning_up() -> None:
    with Interrupts() as interrupts:
        interrupts.hold()
        os.kill(os.getpid(), signal.SIGINT)


def test_the_histogram_counts_every_latency_once_and_marks_the_percentiles() -> None:
    recorder = LatencyRecorder()
    for latency in [300] * 900 + [500] * 95 + [1_000_000] * 5:
        recorder.record(latency)
    rows = buckets(recorder)
    assert sum(row.count for row in rows) == recorder.count
    assert rows[-1].upper is None
    marks = {row.mark: row for row in rows if row.mark}
    assert marks["p50"].count == 900
    assert marks["p99"].count == 95


def test_a_single_latency_and_none_at_all_have_a_histogram() -> None:
    recorder = LatencyRecorder()
    assert buckets(recorder) == []
    recorder.record(0)
    assert [(row.count, row.mark) for row in buckets(recorder)] == [(1, "p50, p99"), (0, "")]


@pytest.mark.parametrize(
    ("count", "most", "drawn", "plain"),
    [(0, 10, "", ""), (10, 10, "████", "####"), (5, 10, "██", "##"), (1, 1000, "▏", "#"), (3, 8, "█▌", "##")],
)
def test_a_bar_is_as_long_as_its_share_and_never_hides_a_count(count: int, most: int, drawn: str, plain: str) -> None:
    assert bar(count, most, 4) == drawn
    assert bar(count, most, 4, plain=True) == plain
