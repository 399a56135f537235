"""The configuration file says what the command line would, and is checked as strictly."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from emulator.config_file import RunFile, read
from emulator.exit_codes import ExitCode, Failure
from emulator.machine import HypervisorName
from emulator.spec import Spec


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.toml"


def test_everything_it_can_say(file: Path) -> None:
    file.write_text(
        """
        domid = 3
        hypervisor = "local:lab"
        poll-us = "always"
        map-budget = 64
        [[device]]
        model = "blk"
        path = "a,b.img"
        readonly = true
        block-size = 4096
        [[device]]
        model = "rng"
        """
    )
    assert read(file) == RunFile(
        3,
        HypervisorName("local", "lab"),
        math.inf,
        64,
        (Spec("blk", (("path", "a,b.img"), ("readonly", "on"), ("block_size", "4096"))), Spec("rng")),
    )


def test_an_empty_one_says_nothing(file: Path) -> None:
    file.write_text("")
    assert read(file) == RunFile()


@pytest.mark.parametrize(
    ("text", "code", "complaint"),
    [
        ("domid = ", ExitCode.USAGE, "not TOML"),
        ("domd = 1", ExitCode.USAGE, "known: domid, hypervisor"),
        ("domid = 0", ExitCode.USAGE, "not a number from 1"),
        ("domid = true", ExitCode.USAGE, "not a number from 1"),
        ('domid = "1"', ExitCode.USAGE, "not a number from 1"),
        ('hypervisor = "kvm"', ExitCode.USAGE, "none of xen"),
        ("poll-us = -1", ExitCode.USAGE, "neither a number"),
        ("poll-us = 0.5", ExitCode.USAGE, "poll-us = 0.5: expected an integer or a string"),
        ("map-budget = 0", ExitCode.USAGE, "map-budget = 0 is not a number from 1"),
        ("hypervisor = 7", ExitCode.USAGE, "hypervisor = 7: expected a string"),
        ("device = 1", ExitCode.BAD_DEVICE, "tables"),
        ('device = ["blk"]', ExitCode.BAD_DEVICE, "tables"),
        ("[[device]]", ExitCode.BAD_DEVICE, "needs a model"),
        ('[[device]]\nmodel = "blk"\npath = ["a"]', ExitCode.BAD_DEVICE, "expected a string"),
        ('[[device]]\nmodel = "blk"\npath = 7', ExitCode.BAD_DEVICE, "blk: path = 7: expected a string"),
        ('[[device]]\nmodel = "blk"\nreadonly = 1', ExitCode.BAD_DEVICE, "readonly = 1: expected true or false"),
        ('[[device]]\nmodel = "blk"\nblock-size = true', ExitCode.BAD_DEVICE, "block_size = true: expected an integer"),
        ('[[device]]\nmodel = "none"\npath = 0.5', ExitCode.BAD_DEVICE, "path = 0.5: expected a string, an integer"),
        ('[[device]]\nmodel = "blk"\n"a b" = "c"', ExitCode.BAD_DEVICE, "not a word"),
        ('[[device]]\nmodel = "blk"\na-b = 1\na_b = 2', ExitCode.BAD_DEVICE, "given twice"),
    ],
)
def test_what_is_wrong_with_it_is_said_in_one_line(file: Path, text: str, code: ExitCode, complaint: str) -> None:
    file.write_text(text)
    with pytest.raises(Failure, match=complaint) as refusal:
        read(file)
    assert refusal.value.code is code
    assert str(file) in refusal.value.message
    assert "\n" not in refusal.value.message


def test_a_file_that_is_not_there_is_a_missing_file(file: Path) -> None:
    with pytest.raises(Failure, match="cannot read") as refusal:
        read(file)
    assert refusal.value.code is ExitCode.MISSING_FILE


def test_bytes_that_are_no_text_are_not_toml(file: Path) -> None:
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(Failure, match="not TOML"):
        read(file)
