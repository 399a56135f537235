"""Domains come and go; with one goes all that was its."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from cpp_ring.store import Store, StoreError
from emulator.local import Control, MachineError, wire
from tests.local.client import Client


def test_a_machine_starts_with_dom0_and_idle_domains(machine: Path) -> None:
    with Control(machine) as control:
        assert control.domains() == [0, 1, 2, 3]
    with Store.open(machine / "dom0" / "xenstored") as store:
        assert store.directory("/local/domain") == ["0", "1", "2", "3"]
        assert store.read("/local/domain/2/domid") == "2"
        assert store.read("/local/domain/2/name") == "Domain-2"
        assert store.get_perms("/local/domain/2") == ["n2"]
        assert store.get_perms("/local/domain/2/device") == ["n2"]
        assert store.get_perms("/local/domain/2/name") == ["n0", "r2"]


def test_a_created_domain_can_be_connected_to_and_is_announced(machine: Path) -> None:
    with Control(machine) as control, Store.open(machine / "dom0" / "xenstored") as store:
        store.watch("@introduceDomain", "new")
        assert store.next_event(10) == ("@introduceDomain", "new")
        assert not store.is_domain_introduced(7)
        control.create_domain(7)
        assert store.next_event(10) == ("@introduceDomain", "new")
        assert store.is_domain_introduced(7)
        with Client(machine, 7) as guest:
            guest.share(0)


def test_a_destroyed_domain_takes_everything_with_it(machine: Path) -> None:
    with (
        Control(machine) as control,
        Store.open(machine / "dom0" / "xenstored") as store,
        Store.open(machine / "dom1" / "xenstored") as guest_store,
        Client(machine, 1) as guest,
        Client(machine, 0) as backend,
    ):
        first, page = guest.share(0)
        page.memory[0] = 3
        _, [mapped] = backend.map(1, first)
        bound = backend.bind(1, guest.alloc_unbound(0).port)
        assert bound.wait()
        store.mkdir("/elsewhere")
        store.set_perms("/elsewhere", ["n0", "b1"])
        guest_store.write("/elsewhere/mine/deep", "x")
        store.watch("@releaseDomain", "gone")
        assert store.next_event(10) == ("@releaseDomain", "gone")

        control.destroy_domain(1)

        assert store.next_event(10) == ("@releaseDomain", "gone")
        assert bound.wait(), "the peer is told"
        assert mapped.memory[0] == 3, "what is mapped stays"
        assert "1" not in store.directory("/local/domain")
        assert store.directory("/elsewhere") == [], "the next domain 1 does not inherit"
        assert not store.is_domain_introduced(1)
        with pytest.raises(StoreError) as error:
            guest_store.read("name")
        assert error.value.errno == errno.ECONNRESET
        with pytest.raises(ConnectionError):
            guest.share(0)
        assert backend.refused(wire.GRANT_MAP, 1, first, 1, 0) == errno.ENOENT
        assert not (machine / "dom1").exists()


def test_a_domain_can_be_born_again(machine: Path) -> None:
    with Control(machine) as control:
        for _ in range(3):
            control.destroy_domain(2)
            control.create_domain(2)
    with Client(machine, 2) as guest:
        assert guest.share(0)[0] == 8


@pytest.mark.parametrize(("domid", "error"), [(0, errno.EEXIST), (1, errno.EEXIST), (0x7FF0, errno.EINVAL)])
def test_what_cannot_be_created_is_refused(machine: Path, domid: int, error: int) -> None:
    with Control(machine) as control, pytest.raises(MachineError) as refused:
        control.create_domain(domid)
    assert refused.value.errno == error


@pytest.mark.parametrize(("domid", "error"), [(0, errno.EINVAL), (9, errno.ENOENT)])
def test_what_cannot_be_destroyed_is_refused(machine: Path, domid: int, error: int) -> None:
    with Control(machine) as control, pytest.raises(MachineError) as refused:
        control.destroy_domain(domid)
    assert refused.value.errno == error
