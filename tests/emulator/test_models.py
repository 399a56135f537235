"""From a specification to a model: what is checked before anything is opened, and paths that hold elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from devices.errors import OptionError
from emulator import models, spec
from emulator.exit_codes import ExitCode, Failure
from tests.emulator.machines import MODELS


def test_a_built_model_is_not_opened(tmp_path: Path) -> None:
    device = models.build(spec.parse(f"blk,path={tmp_path}/none"))
    assert device.name == "blk"
    with pytest.raises(Failure, match="none") as refusal:
        models.validate(spec.parse(f"blk,path={tmp_path}/none"))
    assert refusal.value.code is ExitCode.MISSING_FILE


def test_paths_become_absolute_and_nothing_else_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    resolved = models.absolute(spec.parse("net,socket=a.sock,peer=/b.sock,link=down"))
    assert str(resolved) == f"net,socket={tmp_path}/a.sock,peer=/b.sock,link=down"


def test_a_class_in_a_file_becomes_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(MODELS.parent)
    assert models.absolute(spec.parse("./models.py:Echo,start=1")) == spec.parse(f"{MODELS}:Echo,start=1")


def test_what_cannot_be_loaded_is_left_for_build_to_complain(tmp_path: Path) -> None:
    nothing = spec.parse(f"{tmp_path}/none.py:Thing,path=x")
    assert models.absolute(nothing) == nothing
    with pytest.raises(OptionError, match="no such file"):
        models.build(nothing)


@pytest.mark.parametrize("body", ["raise SystemExit(0)", "from devices import Device\nclass Thing(Device): exit(0)"])
def test_a_file_that_wants_to_end_the_process_is_one_line(tmp_path: Path, body: str) -> None:
    (tmp_path / "bad.py").write_text(body)
    with pytest.raises(Failure, match="SystemExit") as refusal:
        models.validate(spec.parse(f"{tmp_path}/bad.py:Thing"))
    assert refusal.value.code is ExitCode.BAD_DEVICE


def test_whatever_a_models_init_raises_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        "from devices import Device\n"
        "class Thing(Device):\n    name = 'thing'\n    device_id = 66\n    def __init__(self):\n        1 / 0\n"
    )
    with pytest.raises(OptionError, match="ZeroDivisionError: division by zero"):
        models.build(spec.parse(f"{tmp_path}/bad.py:Thing"))
