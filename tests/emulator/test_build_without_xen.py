"""A build without Xen's libraries says what to install to those who ask for Xen."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

import cpp_ring
from cpp_ring import _core, xen
from emulator.exit_codes import ExitCode, Failure
from emulator.machine import HypervisorName, Machine
from guest.hypervisor import open_xen


@pytest.fixture(autouse=True)
def without_xen(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (cpp_ring, _core):
        monkeypatch.delattr(module, "XenHypervisor", raising=False)


def test_the_emulator_names_the_packages(tmp_path: Path) -> None:
    machine = Machine(HypervisorName("xen"), tmp_path, tmp_path)
    with pytest.raises(Failure, match="no Xen support; `apt-get install libxen-dev pkg-config`") as failed:
        machine.open_hypervisor(256)
    assert failed.value.code is ExitCode.NOT_INSTALLED


def test_the_guests_driver_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xen, "open_store", contextlib.nullcontext)
    monkeypatch.setattr(xen, "own_domid", lambda store: 7)
    with pytest.raises(ValueError, match="no Xen support: install libxen-dev and pkg-config"):
        open_xen()
