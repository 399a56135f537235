"""The bench measures what it says, in the format that is promised, and says clearly when it cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cpp_ring import LatencyRecorder
from emulator.bench import vhost_user
from emulator.bench.plot import plot
from emulator.bench.rows import LIMIT, Row, human, targets

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


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="the bench needs two cores")
def test_a_run_gives_every_row_as_table_json_and_plot(tmp_path: Path) -> None:
    done = bench("--count", "1000", "--json", str(tmp_path / "b.json"), "--plot", str(tmp_path / "b.svg"))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "b.json").read_text())
    expected = ROWS | ({"peer.vhost-user"} if vhost_user.installed() else set())
    assert {entry["name"] for entry in result["rows"]} == expected
    assert {"cpu", "cores", "kernel", "python"} <= result["machine"].keys()
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
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_measured(arguments: tuple[str, ...], says: str) -> None:
    done = bench(*arguments)
    assert done.returncode == 2
    assert says in done.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "ns", "0 ns"),
        (999, "ns", "999 ns"),
        (1000, "ns", "1.0 us"),
        (123_456, "ns", "123 us"),
        (2_500_000_000, "ns", "2.5 s"),
        (12_345_678, "bytes", "12.3 MB"),
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


def test_the_plot_draws_time_rows_only(tmp_path: Path) -> None:
    plot([row(LIMIT, 100, 200), row("emulator.pss", 5, unit="bytes"), row("empty")], tmp_path / "p.svg")
    drawn = (tmp_path / "p.svg").read_text()
    assert LIMIT in drawn
    assert "emulator.pss" not in drawn
