"""What one domU may take of the store; dom0 and the other domUs go on."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cpp_ring.store import Store, StoreError, Transaction


@pytest.fixture
def guest(machine: Path) -> Iterator[Store]:
    with Store.open(machine / "dom1" / "xenstored") as store:
        yield store


@pytest.fixture
def dom0(machine: Path) -> Iterator[Store]:
    with Store.open(machine / "dom0" / "xenstored") as store:
        yield store


def until_refused(call: Callable[[int], object], most: int = 5000) -> tuple[int, int]:
    """How often it went well, and the errno of the refusal."""
    for number in range(most):
        try:
            call(number)
        except StoreError as error:
            return number, error.errno or 0
    raise AssertionError(f"not refused in {most} calls")


def test_nodes_are_limited_and_come_back(machine: Path, guest: Store, dom0: Store) -> None:
    count, error = until_refused(lambda number: guest.mkdir(f"device/{number % 50}/{number}"))
    assert error == errno.ENOSPC
    assert 900 < count < 1000
    with pytest.raises(StoreError):
        guest.write("device/one/more", "")
    guest.write("device/0/0", "existing nodes can be written")
    dom0.write("/local/domain/1/device/fromdom0", "dom0 is not bound")
    with Store.open(machine / "dom2" / "xenstored") as neighbour:
        neighbour.write("device/x", "")
    guest.rm("device/1")
    guest.write("device/one/more", "")


def test_nodes_of_a_transaction_count(guest: Store) -> None:
    def many(t: Transaction) -> None:
        for number in range(2000):
            t.mkdir(f"device/{number % 50}/{number}")

    with pytest.raises(StoreError) as error:
        guest.transact(many)
    assert error.value.errno == errno.ENOSPC
    assert "(ENOSPC); this domain's quota is used up: remove" in str(error.value)
    assert guest.directory("device") == []
    guest.write("device/x", "")


def test_two_transactions_cannot_exceed_the_quota_together(machine: Path, guest: Store) -> None:
    for number in range(40):
        guest.mkdir(f"device/{number}")

    def fill(t: Transaction, first: int) -> None:
        for number in range(500):
            t.mkdir(f"device/{first + number // 30}/{number}")

    def fill_together() -> None:
        with guest.transaction() as t:
            fill(t, 0)
            sibling.transact(lambda theirs: fill(theirs, 20))

    with Store.open(machine / "dom1" / "xenstored") as sibling:
        with pytest.raises(StoreError) as error:
            fill_together()
        assert error.value.errno == errno.ENOSPC
    assert guest.directory("device/0") == []


def test_a_failed_step_of_a_transaction_counts_nothing(guest: Store) -> None:
    with guest.transaction() as t:
        for _ in range(100):
            with pytest.raises(StoreError):
                t.write("device/" + "y" * 100, "x" * 2049)
            t.write("device/n", "x")
            t.rm("device/n")
    count, _ = until_refused(lambda number: guest.mkdir(f"device/{number % 50}/{number}"))
    assert count > 900


def test_a_value_and_a_list_of_children_are_limited(guest: Store, dom0: Store) -> None:
    guest.write("device/x", "v" * 2048)
    with pytest.raises(StoreError) as error:
        guest.write("device/x", "v" * 2049)
    assert error.value.errno == errno.ENOSPC
    with pytest.raises(StoreError):
        guest.write("device/y", "v" * 2049)
    assert guest.directory("device") == ["x"]
    count, error_number = until_refused(lambda number: guest.mkdir(f"device/{number:0100}"))
    assert error_number == errno.ENOSPC
    assert count == (2048 - 2) // 101
    assert len(dom0.directory("/local/domain/1/device")) == count + 1, "dom0 can always list it"


def test_watches_are_limited_for_the_domain_as_a_whole(machine: Path, guest: Store, dom0: Store) -> None:
    with Store.open(machine / "dom1" / "xenstored") as sibling:
        for number in range(100):
            sibling.watch(f"device/{number}", "t")
        count, error = until_refused(lambda number: guest.watch(f"device/{number}", "t"))
        assert (count, error) == (28, errno.ENOSPC)
    guest.unwatch("device/0", "t")
    guest.watch("device/0", "t")
    for number in range(300):
        dom0.watch(f"/{number}", "t")


def test_transactions_are_limited_and_end_with_their_connection(machine: Path, guest: Store) -> None:
    def leave_open(store: Store) -> Callable[[int], object]:
        return lambda _: store.transaction().__enter__()

    with Store.open(machine / "dom1" / "xenstored") as sibling:
        assert until_refused(leave_open(sibling)) == (10, errno.ENOSPC)
        assert until_refused(leave_open(guest)) == (0, errno.ENOSPC)
    guest.read("name")  # the broker has seen the end of the sibling
    assert until_refused(leave_open(guest)) == (10, errno.ENOSPC)


def test_what_one_transaction_looks_at_is_limited(guest: Store) -> None:
    with guest.transaction() as t:
        count, error = until_refused(lambda number: t.read_optional(f"device/{number}"))
    assert error == errno.ENOSPC
    assert 1000 < count <= 1024


def test_permission_entries_are_limited_for_guests(guest: Store, dom0: Store) -> None:
    guest.mkdir("device/x")
    guest.set_perms("device/x", ["n1", "r2", "r3", "r4", "r5"])
    with pytest.raises(StoreError) as error:
        guest.set_perms("device/x", ["n1", "r2", "r3", "r4", "r5", "r6"])
    assert error.value.errno == errno.ENOSPC
    dom0.set_perms("/local/domain/1/device/x", ["n1", *(f"r{domid}" for domid in range(2, 30))])
