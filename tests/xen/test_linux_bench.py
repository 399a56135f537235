"""The bench of a domU's kernel measures what it says, and leaves nothing. No figure is judged."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from emulator.exit_codes import ExitCode
from tests.xen.domu import Domu
from tests.xen.linux_guest import MODULE, module
from tests.xen.serving import TWO_CPUS, benched

DISK = ("read.4k.d1", "read.4k.d16", "write.4k.d1", "write.4k.d16", "flush.d1", "flush.d16", "read.64k", "write.64k")
NET = ("tcp.rr", "tcp.stream")
ROWS = {
    "limit.cache-line",
    "guest.config.get.awake",
    "guest.config.get.asleep",
    "guest.probe",
    *(f"{whose}.{row}" for whose in ("guest", "peer.blkback") for row in DISK),
    *(f"{whose}.{row}" for whose in ("guest", "peer.netback") for row in NET),
}


pytestmark = [TWO_CPUS, pytest.mark.parametrize("domu", ["pv"], indirect=True)]


def test_a_domain_that_has_what_would_be_written_to_is_refused(domu: Domu) -> None:
    with module(domu), benched(domu) as bench:
        done = bench("--module", MODULE)
    assert done.returncode == ExitCode.PROCESS_FAILED, done.stderr
    assert "/sys/module/virtio_msg_xen is there already" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_run_gives_every_row_and_leaves_nothing(domu: Domu, tmp_path: Path) -> None:
    with benched(domu) as bench:
        done = bench("--module", MODULE, "--count", "100", "--poll-us", "100", "--json", str(tmp_path / "b.json"))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "b.json").read_text())
    assert result["machine"]["poll-us"] == "100"
    rows = result["rows"]
    assert {row["name"] for row in rows} - {row["name"] for row in rows if "qdisk" in row["name"]} == ROWS
    assert all(0 < row["min"] <= row["p50"] for row in rows)
    assert "guest.read.4k.d1 / peer.blkback.read.4k.d1" in done.stdout
    assert "virtio_msg_xen" not in domu.run("lsmod").output
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    assert "vdm-bench" not in links
    for kind in ("virtio-msg", "vbd", "qdisk", "vif"):
        path = f"/local/domain/0/backend/{kind}/{domu.domid}"
        left = subprocess.run(["xenstore-list", path], capture_output=True, text=True, check=False)
        assert left.stdout == "", path
