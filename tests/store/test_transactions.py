"""Transactions: all or nothing, and no conflict goes unseen."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cpp_ring.store import MAX_ATTEMPTS, Store, StoreError, Transaction


@pytest.fixture
def store(machine: Path) -> Iterator[Store]:
    with Store.open(machine / "dom0" / "xenstored") as store:
        yield store


@pytest.fixture
def other(machine: Path) -> Iterator[Store]:
    with Store.open(machine / "dom0" / "xenstored") as store:
        yield store


def once(store: Store, change: Callable[[Transaction], object]) -> None:
    """One attempt."""
    with store.transaction() as transaction:
        change(transaction)


def conflict(store: Store, change: Callable[[Transaction], object]) -> None:
    """`change` does something that makes its own commit impossible."""
    with pytest.raises(StoreError) as error:
        once(store, change)
    assert error.value.errno == errno.EAGAIN


def test_changes_are_seen_inside_at_once_and_outside_after_the_commit(store: Store, other: Store) -> None:
    with store.transaction() as t:
        t.write("/a/b", "1")
        t.mkdir("/c")
        assert t.read("/a/b") == "1"
        assert t.directory("/a") == ["b"]
        assert other.read_optional("/a") is None
        assert store.read_optional("/a") is None
    assert other.read("/a/b") == "1"
    assert other.read("/c") == ""


def test_an_exception_drops_everything(store: Store) -> None:
    def fail(t: Transaction) -> None:
        t.write("/a", "1")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        once(store, fail)
    assert store.read_optional("/a") is None
    assert len(store.directory("/")) == 1, "only /local"


def test_a_transaction_sees_the_store_as_it_was(store: Store, other: Store) -> None:
    store.write("/a", "old")
    store.write("/b", "old")

    def look(t: Transaction) -> None:
        assert t.read("/a") == "old"
        other.write("/b", "new")
        assert t.read("/b") == "old"

    conflict(store, look)


@pytest.mark.parametrize("inside", ["read", "directory", "write", "rm", "get_perms", "missing"])
@pytest.mark.parametrize("outside", ["write", "rm", "set_perms"])
def test_whatever_it_looked_at_must_not_have_changed(store: Store, other: Store, inside: str, outside: str) -> None:
    store.write("/a", "old")

    def change(t: Transaction) -> None:
        match inside:
            case "write":
                t.write("/a", "mine")
            case "missing":
                assert t.read_optional("/a/x") is None
            case _:
                getattr(t, inside)("/a")
        match outside:
            case "write":
                other.write("/a", "theirs")
            case "rm":
                other.rm("/a")
            case "set_perms":
                other.set_perms("/a", ["r0"])

    conflict(store, change)
    assert store.read_optional("/a") == (None if outside == "rm" else "theirs" if outside == "write" else "old")


def test_a_node_that_appeared_is_a_conflict(store: Store, other: Store) -> None:
    def look(t: Transaction) -> None:
        assert t.read_optional("/a") is None
        other.write("/a", "x")

    conflict(store, look)


def test_two_new_children_of_one_node_conflict(store: Store, other: Store) -> None:
    store.mkdir("/d")

    def change(t: Transaction) -> None:
        t.write("/d/mine", "1")
        other.write("/d/theirs", "2")

    conflict(store, change)
    assert store.directory("/d") == ["theirs"]


def test_changes_elsewhere_are_no_conflict_and_both_stay(store: Store, other: Store) -> None:
    store.write("/a/x", "old")
    store.write("/b/gone/deep", "old")
    store.write("/c/x", "old")
    with store.transaction() as t:
        t.write("/a/x", "mine")
        t.write("/a/y/z", "new")
        t.rm("/b/gone")
        t.set_perms("/a", ["r0"])
        other.write("/c/x", "theirs")
        other.write("/c/new", "theirs")
    assert store.read("/a/x") == "mine"
    assert store.read("/a/y/z") == "new"
    assert store.get_perms("/a") == ["r0"]
    assert store.directory("/b") == []
    assert store.read("/c/x") == "theirs"
    assert store.read("/c/new") == "theirs"


def test_a_subtree_replaced_inside_is_replaced_outside(store: Store, other: Store) -> None:
    store.write("/a/old/deep", "x")
    store.mkdir("/b")
    with store.transaction() as t:
        t.rm("/a")
        t.write("/a/new", "y")
        other.write("/b/x", "")
    assert store.directory("/a") == ["new"]


def test_transact_repeats_until_it_is_through(store: Store, other: Store) -> None:
    store.write("/counter", "0")
    tries: list[int] = []

    def increment(t: Transaction) -> int:
        value = int(t.read("/counter"))
        if len(tries) < 3:
            tries.append(value)
            other.write("/counter", str(value + 10))
        t.write("/counter", str(value + 1))
        return value + 1

    assert store.transact(increment) == 31
    assert store.read("/counter") == "31"
    assert tries == [0, 10, 20]


def test_transact_gives_up_when_somebody_always_gets_in_between(store: Store, other: Store) -> None:
    store.write("/a", "")
    attempts = []

    def never(t: Transaction) -> None:
        attempts.append(t.read("/a"))
        other.write("/a", str(len(attempts)))

    with pytest.raises(StoreError) as error:
        store.transact(never)
    assert error.value.errno == errno.EAGAIN
    assert len(attempts) == MAX_ATTEMPTS


def test_transact_passes_errors_on_and_leaves_no_transaction_open(machine: Path) -> None:
    def fail(t: Transaction) -> None:
        t.read("/no/such")

    with Store.open(machine / "dom1" / "xenstored") as guest:
        for _ in range(50):  # the limit is 10
            with pytest.raises(StoreError) as error:
                guest.transact(fail)
            assert error.value.errno == errno.EACCES


def test_watches_fire_at_the_commit_and_once(store: Store, other: Store) -> None:
    other.watch("/a", "t")
    assert other.next_event(10) == ("/a", "t")
    with store.transaction() as t:
        t.write("/a/x", "1")
        t.write("/a/x", "2")
        assert other.events() == []
    assert other.next_event(10) == ("/a/x", "t")

    def fail(t: Transaction) -> None:
        t.write("/a/x", "3")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        once(store, fail)
    other.read("/a/x")
    assert other.events() == []


def test_a_transaction_that_ended_is_over(store: Store) -> None:
    with store.transaction() as t:
        t.write("/a", "1")
    with pytest.raises(StoreError, match="has ended"):
        t.write("/a", "2")
    assert store.read("/a") == "1"


def test_a_node_made_and_removed_inside_never_was(store: Store, other: Store) -> None:
    other.watch("/", "t")
    assert other.next_event(10) == ("/", "t")
    with store.transaction() as t:
        t.write("/brief", "")
        t.rm("/brief")
        t.write("/stays", "")
    assert other.next_event(10) == ("/stays", "t")
    assert other.events() == []
