"""What a driver in user space may grant ends at the limit of its kernel's gntalloc."""

from __future__ import annotations

from pathlib import Path

import pytest

from guest.__main__ import NO_HYPERVISOR
from guest.blk import BlockDevice
from tests.xen.domu import Domu, GuestAgent
from tests.xen.serving import Emulator

LIMIT = "/sys/module/xen_gntalloc/parameters/limit"
ROOM = BlockDevice.arena_pages + 100
"""Pages enough for one disk and not for two."""


@pytest.mark.parametrize("domu", ["pv"], indirect=True)  # the kind makes no difference
def test_a_second_disk_beyond_the_limit_hears_what_was_wanted_and_what_to_raise(
    domu: Domu, guest: GuestAgent, image: Path
) -> None:
    before = domu.run(["cat", LIMIT]).output.strip()
    with Emulator(domu, f"blk,path={image},readonly=on", f"blk,path={image},readonly=on"):
        guest("connect", dev=0)
        try:
            domu.run(f"echo {ROOM} > {LIMIT}")
            code, output = domu.run(["python3", "-m", "guest", "probe", "1"])
        finally:
            domu.run(f"echo {before} > {LIMIT}")
        assert (code, output.count("\n")) == (NO_HYPERVISOR, 1), output
        assert output.startswith(f"guest: cannot grant {BlockDevice.arena_pages} pages to domain 0: "), output
        assert f"is {ROOM} pages, write a larger number to {LIMIT}" in output
        assert domu.run(["python3", "-m", "guest", "probe", "1"]).code == 0
        assert len(guest("blk_sha256", dev=0)["sha256"]) == 64
        guest("close", dev=0)
