"""Watches: what fires, for whom, and how often."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from cpp_ring.store import Store, StoreError

HOME = "/local/domain/1/device"


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


def settle(store: Store) -> list[tuple[str, str]]:
    """All events up to here: the answer to a later request comes after what it waited behind."""
    events = []
    store.watch("/local/domain", "settle")
    while (event := store.next_event(10)) != ("/local/domain", "settle"):
        assert event is not None
        events.append(event)
    store.unwatch("/local/domain", "settle")
    return events


def watched(store: Store, path: str, token: str = "t") -> None:
    """Sets a watch and takes its first event."""
    store.watch(path, token)
    assert store.next_event(10) == (path, token)


def test_a_watch_fires_at_once_even_for_a_node_that_is_not_there(dom0: Store) -> None:
    watched(dom0, "/nothing/there")
    assert settle(dom0) == []


def test_changes_of_the_node_and_below_fire(dom0: Store, dom1: Store) -> None:
    watched(dom0, HOME)
    dom1.write("device/x/y", "1")
    assert settle(dom0) == [(f"{HOME}/x/y", "t")]
    dom1.write("device/x/y", "1")
    dom1.mkdir("device/z")
    dom1.mkdir("device/z")
    assert settle(dom0) == [(f"{HOME}/x/y", "t"), (f"{HOME}/z", "t")]
    dom1.set_perms("device/z", ["r1"])
    assert settle(dom0) == [(f"{HOME}/z", "t")]
    dom0.write("/local/domain/1/devices", "a sibling with a longer name")
    dom0.write("/local/domain/1/name", "x")
    assert settle(dom0) == []


def test_removal_of_an_ancestor_fires_with_the_watched_path(dom0: Store) -> None:
    dom0.write("/a/b/c/d", "x")
    watched(dom0, "/a/b/c", "below")
    watched(dom0, "/a/b/missing", "missing")
    watched(dom0, "/a", "above")
    dom0.rm("/a/b")
    assert sorted(settle(dom0)) == [("/a/b", "above"), ("/a/b/c", "below")]
    dom0.rm("/a/b")
    assert settle(dom0) == []


def test_creation_of_a_child_does_not_fire_what_waits_below(dom0: Store) -> None:
    watched(dom0, "/a/b/c", "below")
    dom0.write("/a", "x")
    assert settle(dom0) == []
    dom0.write("/a/b/c", "x")
    assert settle(dom0) == [("/a/b/c", "below")]


def test_a_watch_of_the_root_sees_everything(dom0: Store) -> None:
    watched(dom0, "/")
    dom0.write("/a/b", "x")
    assert settle(dom0) == [("/a/b", "t")]


def test_a_relative_watch_has_relative_events(dom0: Store, dom1: Store) -> None:
    watched(dom1, "device")
    dom0.write(f"{HOME}/0/state", "4")
    event = dom1.next_event(10)
    assert event == ("device/0/state", "t")


def test_equal_events_are_merged(dom0: Store, dom1: Store) -> None:
    watched(dom0, HOME)
    for _ in range(500):
        dom1.write("device/x", "1")
        dom1.write("device/y", "1")
    assert set(settle(dom0)) == {(f"{HOME}/x", "t"), (f"{HOME}/y", "t")}


def test_a_watch_fires_only_for_who_may_read(dom0: Store, dom1: Store, dom2: Store) -> None:
    watched(dom2, "/local/domain/1/device/x")
    watched(dom2, "/local/domain/2/device", "settle")
    dom1.write("device/x", "secret")
    dom2.write("device/now", "")
    assert dom2.next_event(10) == ("/local/domain/2/device/now", "settle")
    dom1.set_perms("device/x", ["n1", "r2"])
    assert dom2.next_event(10) == (f"{HOME}/x", "t")
    dom1.write("device/x", "open")
    assert dom2.next_event(10) == (f"{HOME}/x", "t")
    dom1.set_perms("device/x", ["n1"])
    assert dom2.next_event(10) == (f"{HOME}/x", "t"), "losing sight is the last thing seen"
    dom1.write("device/x", "secret")
    dom1.set_perms("device/x", ["n1", "r2"])
    dom1.rm("device/x")
    assert dom2.next_event(10) == (f"{HOME}/x", "t")
    dom2.write("device/now", "")
    assert dom2.next_event(10) == ("/local/domain/2/device/now", "settle")


def test_domain_events_are_for_dom0(dom1: Store) -> None:
    watched(dom1, "@releaseDomain")
    assert dom1.events() == []


def test_a_watch_is_known_by_path_and_token(dom0: Store) -> None:
    watched(dom0, "/a", "one")
    watched(dom0, "/a", "two")
    with pytest.raises(StoreError) as error:
        dom0.watch("/a", "one")
    assert error.value.errno == errno.EEXIST
    dom0.write("/a", "")
    assert settle(dom0) == [("/a", "one"), ("/a", "two")]
    dom0.unwatch("/a", "one")
    dom0.write("/a", "")
    assert settle(dom0) == [("/a", "two")]
    for path, token in (("/a", "one"), ("/b", "two")):
        with pytest.raises(StoreError) as error:
            dom0.unwatch(path, token)
        assert error.value.errno == errno.ENOENT


@pytest.mark.parametrize("path", ["", "/a/", "@nothing", "@", "/a b"])
def test_bad_watch_paths_are_invalid(dom0: Store, path: str) -> None:
    with pytest.raises(StoreError) as error:
        dom0.watch(path, "t")
    assert error.value.errno == errno.EINVAL


def test_unwatch_drops_events_that_are_on_their_way(dom0: Store) -> None:
    watched(dom0, "/a")
    dom0.write("/a", "")
    dom0.unwatch("/a", "t")
    assert settle(dom0) == []


def test_watches_end_with_their_connection(machine: Path, dom0: Store) -> None:
    with Store.open(machine / "dom1" / "xenstored") as guest:
        for number in range(128):
            guest.watch(f"device/{number}", "t")
    with Store.open(machine / "dom1" / "xenstored") as guest:
        for number in range(128):
            guest.watch(f"device/{number}", "t")


def test_a_poll_on_the_descriptor_wakes_for_an_event(dom0: Store, dom1: Store) -> None:
    import select

    watched(dom0, HOME)
    assert not select.select([dom0], [], [], 0)[0]
    dom1.write("device/x", "")
    assert select.select([dom0], [], [], 10)[0]
    assert dom0.events() == [(f"{HOME}/x", "t")]
    assert dom0.events() == []
    assert dom0.next_event(0) is None
