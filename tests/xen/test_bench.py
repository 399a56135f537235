"""The bench between dom0 and a domU measures what it says, in the format that is promised. No figure is judged."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from emulator.bench.rows import LIMIT
from emulator.exit_codes import ExitCode
from tests.xen.domu import Domu
from tests.xen.serving import TWO_CPUS, Bench, benched

ROWS = {
    LIMIT,
    "config.get",
    "config.get.256",
    "config.set.python",
    "config.get.python",
    "config.get.asleep",
    "probe.blk",
    "probe.blk.burst",
    "probe.blk.reads",
    "blk.read.4k",
    "emulator.start",
    "emulator.pss",
    "peer.evtchn",
    "peer.xenvchan.awake",
    "peer.xenvchan.asleep",
}

pytestmark = pytest.mark.parametrize("domu", ["pv"], indirect=True)


@pytest.fixture(scope="module")
def bench(domu: Domu) -> Iterator[Bench]:
    with benched(domu) as command:
        yield command


@TWO_CPUS
def test_a_run_gives_every_row_as_table_and_json_and_leaves_nothing(domu: Domu, bench: Bench, tmp_path: Path) -> None:
    done = bench("--count", "200", "--json", str(tmp_path / "b.json"))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "b.json").read_text())
    assert {entry["name"] for entry in result["rows"]} == ROWS
    assert result["machine"]["hypervisor"] == "xen"
    assert result["machine"]["guest"] == "pv"
    for entry in result["rows"]:
        assert set(entry) == {"name", "unit", "count", "min", "p50", "p99", "p99.9", "ratio"}
        assert entry["count"] >= 1
        assert 0 < entry["min"] <= entry["p50"] <= entry["p99"] <= entry["p99.9"]
        assert entry["name"] in done.stdout
    assert "config.get / peer.xenvchan.awake" in done.stdout
    left = subprocess.run(
        ["xenstore-list", f"/local/domain/0/backend/virtio-msg/{domu.domid}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert left.stdout == ""


@pytest.mark.parametrize(
    ("guest", "code", "says"),
    [
        ("/no/such/command", ExitCode.MISSING_FILE, "there is no command '/no/such/command'"),
        ("sh -c 'exit 3'", ExitCode.TIMED_OUT, "try --guest by hand"),
        (f"{sys.executable} -m guest agent", ExitCode.USAGE, "starts a guest in domain 0"),
    ],
)
def test_a_command_that_is_no_guest_of_the_domain_is_said(bench: Bench, guest: str, code: ExitCode, says: str) -> None:
    done = bench("--guest", guest)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert done.stderr.startswith("virtio-dm: ")
    assert done.stderr.count("\n") == 1


def test_a_domain_that_is_not_there_is_said(bench: Bench) -> None:
    done = bench("--domid", "30000")
    assert done.returncode == ExitCode.NO_DOMAIN, done.stderr
    assert "no domain 30000" in done.stderr
