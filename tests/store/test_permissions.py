"""Who may read, write and re-permit which node, as in xenstored."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cpp_ring.store import Store, StoreError


@pytest.fixture
def dom0(machine: Path) -> Iterator[Store]:
    with Store.open(machine / "dom0" / "xenstored") as store:
        yield store


@pytest.fixture
def dom1(machine: Path) -> Iterator[Store]:
    with Store.open(machine / "dom1" / "xenstored") as store:
        yield store


@pytest.fixture
def dom2(machine: Path) -> Iterator[Store]:
    with Store.open(machine / "dom2" / "xenstored") as store:
        yield store


def errno_of(call: Callable[[], object]) -> int:
    """0: it was allowed."""
    try:
        call()
    except StoreError as error:
        return error.errno or 0
    return 0


@pytest.mark.parametrize(
    ("perms", "reads", "writes"),
    [
        (["n0"], False, False),
        (["r0"], True, False),
        (["w0"], False, True),
        (["b0"], True, True),
        (["n0", "r1"], True, False),
        (["n0", "w1"], False, True),
        (["n0", "b1"], True, True),
        (["b0", "n1"], False, False),
        (["n0", "r2"], False, False),
        (["n0", "r2", "b1"], True, True),
        (["n0", "r1", "b1"], True, False),
        (["n1"], True, True),
        (["n1", "n1"], True, True),
    ],
)
def test_letters_mean_what_they_mean_in_xen(
    dom0: Store, dom1: Store, perms: list[str], reads: bool, writes: bool
) -> None:
    dom0.write("/node", "v")
    dom0.set_perms("/node", perms)
    assert dom0.get_perms("/node") == perms
    assert errno_of(lambda: dom1.read("/node")) == (0 if reads else errno.EACCES)
    assert errno_of(lambda: dom1.directory("/node")) == (0 if reads else errno.EACCES)
    assert errno_of(lambda: dom1.get_perms("/node")) == (0 if reads else errno.EACCES)
    assert errno_of(lambda: dom1.write("/node", "w")) == (0 if writes else errno.EACCES)
    assert errno_of(lambda: dom1.mkdir("/node/child")) == (0 if writes else errno.EACCES)
    assert errno_of(lambda: dom1.rm("/node")) == (0 if writes else errno.EACCES)


def test_dom0_may_everything(dom0: Store, dom1: Store) -> None:
    dom1.write("device/mine", "x")
    assert dom0.read("/local/domain/1/device/mine") == "x"
    dom0.set_perms("/local/domain/1/device/mine", ["n2"])
    dom0.rm("/local/domain/1/device/mine")


def test_a_guest_owns_what_it_makes_and_inherits_the_rest(dom0: Store, dom1: Store) -> None:
    dom0.mkdir("/shared")
    dom0.set_perms("/shared", ["r0", "b1", "r2"])
    dom1.write("/shared/mine/deep", "x")
    assert dom0.get_perms("/shared/mine") == ["r1", "b1", "r2"]
    assert dom0.get_perms("/shared/mine/deep") == ["r1", "b1", "r2"]


def test_what_dom0_makes_belongs_to_the_parents_owner(dom0: Store) -> None:
    dom0.write("/local/domain/1/device/vif/0", "x")
    assert dom0.get_perms("/local/domain/1/device/vif/0") == ["n1"]


def test_permissions_are_the_owners_to_change_and_ownership_dom0s(dom0: Store, dom1: Store, dom2: Store) -> None:
    dom1.write("device/x", "1")
    dom1.set_perms("device/x", ["n1", "r2"])
    assert dom2.read("/local/domain/1/device/x") == "1"
    assert errno_of(lambda: dom1.set_perms("device/x", ["n2", "b1"])) == errno.EPERM
    assert errno_of(lambda: dom2.set_perms("/local/domain/1/device/x", ["n2"])) == errno.EACCES
    dom0.mkdir("/shared")
    dom0.set_perms("/shared", ["n0", "b1"])
    assert errno_of(lambda: dom1.set_perms("/shared", ["n0", "b1"])) == errno.EACCES


def test_who_may_not_look_is_not_told_whether_something_is_there(dom0: Store, dom1: Store) -> None:
    dom0.write("/secret/there", "x")
    assert errno_of(lambda: dom1.read("/secret/there")) == errno.EACCES
    assert errno_of(lambda: dom1.read("/secret/missing")) == errno.EACCES
    assert errno_of(lambda: dom1.read("device/missing")) == errno.ENOENT


def test_permission_on_a_node_does_not_need_permission_on_its_parents(dom0: Store, dom1: Store) -> None:
    dom0.write("/secret/open", "x")
    dom0.set_perms("/secret/open", ["n0", "r1"])
    assert dom1.read("/secret/open") == "x"


@pytest.mark.parametrize("perms", [[], [""], ["x0"], ["n"], ["n-1"], ["n65536"], ["n0", "r"], ["0"], ["n0 "], ["N0"]])
def test_malformed_permissions_are_invalid(dom0: Store, perms: list[str]) -> None:
    dom0.mkdir("/node")
    assert errno_of(lambda: dom0.set_perms("/node", perms)) == errno.EINVAL
    assert dom0.get_perms("/node") == ["n0"]


def test_guests_may_not_ask_about_other_domains_existence(dom1: Store) -> None:
    assert errno_of(lambda: dom1.is_domain_introduced(2)) == errno.EACCES
    assert dom1.get_domain_path(2) == "/local/domain/2"
