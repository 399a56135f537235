"""Threat 21: the devices of a domain together have its emulator's budget of mapped memory, and no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from emulator.exit_codes import ExitCode
from guest.blk import BlockDevice
from guest.errors import NeedsReset
from tests.emulator.machines import Machine

ARENA_MIB = BlockDevice.arena_pages // 256


def test_a_device_beyond_the_domains_budget_is_refused_and_has_its_turn_when_another_one_ends(
    machine: Machine, tmp_path: Path
) -> None:
    specs = []
    for name in ("a.img", "b.img"):
        (tmp_path / name).write_bytes(name.encode().ljust(4096))
        specs.append(f"blk,path={tmp_path / name}")
    process = machine.run(*specs, options=("--map-budget", str(ARENA_MIB + 1)))
    with BlockDevice(machine.domain(), 0) as first:
        with pytest.raises(NeedsReset, match="map_budget"), BlockDevice(machine.domain(), 1) as second:
            second.read(0, 8)
        assert first.read(0, 8)[:5] == b"a.img"
    with BlockDevice(machine.domain(), 1) as second:
        assert second.read(0, 8)[:5] == b"b.img"
    assert process.stop() == ExitCode.OK
