"""The store's tree: values, children, paths."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from cpp_ring.store import Store, StoreError


@pytest.fixture
def store(machine: Path) -> Iterator[Store]:
    with Store.open(machine / "dom0" / "xenstored") as store:
        yield store


def refused(call: object, *arguments: object) -> int:
    with pytest.raises(StoreError) as error:
        call(*arguments)  # type: ignore[operator]
    return error.value.errno or 0


def test_what_is_written_is_read(store: Store) -> None:
    store.write("/a", "one")
    assert store.read("/a") == "one"
    store.write("/a", "")
    assert store.read("/a") == ""
    store.write("/a", b"\xff\0x")
    assert store.read("/a") == "\ufffd\0x"
    store.write("/a", "ü")
    assert store.read("/a") == "ü"


def test_a_write_makes_missing_parents(store: Store) -> None:
    store.write("/a/b/c", "deep")
    assert store.directory("/a") == ["b"]
    assert store.read("/a/b") == ""


def test_children_are_listed_in_the_order_they_came(store: Store) -> None:
    for name in ("z", "a", "m"):
        store.mkdir(f"/d/{name}")
    assert store.directory("/d") == ["z", "a", "m"]
    assert store.directory("/d/z") == []
    assert "d" in store.directory("/")


def test_mkdir_keeps_a_node_that_is_there(store: Store) -> None:
    store.write("/a", "value")
    store.mkdir("/a")
    assert store.read("/a") == "value"


def test_rm_takes_everything_below(store: Store) -> None:
    store.write("/a/b/c", "x")
    store.write("/a/d", "x")
    store.rm("/a")
    assert store.read_optional("/a/b/c") is None
    assert refused(store.directory, "/a") == errno.ENOENT
    store.rm("/a")


def test_rm_needs_a_parent_and_not_the_root(store: Store) -> None:
    assert refused(store.rm, "/no/such") == errno.ENOENT
    assert refused(store.rm, "/") == errno.EINVAL


def test_a_missing_node_is_enoent(store: Store) -> None:
    for call in (store.read, store.directory, store.get_perms):
        assert refused(call, "/missing") == errno.ENOENT
    assert refused(store.set_perms, "/missing", ["n0"]) == errno.ENOENT
    assert store.read_optional("/missing") is None


@pytest.mark.parametrize("path", ["", "/a/", "//", "/a//b", "/a b", "/ä", "/a\n", "@releaseDomain", "/" + "x" * 2048])
def test_bad_paths_are_invalid(store: Store, path: str) -> None:
    for call in (store.read, store.directory, store.mkdir, store.rm, store.get_perms):
        assert refused(call, path) == errno.EINVAL
    assert refused(store.write, path, "x") == errno.EINVAL


def test_the_longest_paths_work(store: Store) -> None:
    deep = "/" + "/".join(["a"] * 1024)
    assert len(deep) == 2048
    store.write(deep, "x")
    assert store.read(deep) == "x"
    wide = "/local/domain/0/" + "y" * 2048
    store.write(wide, "x")
    assert store.read(wide) == "x"
    store.rm("/a")
    assert store.read_optional(deep) is None


def test_relative_paths_start_at_the_domains_home(machine: Path, store: Store) -> None:
    with Store.open(machine / "dom1" / "xenstored") as guest:
        guest.write("device/x", "1")
        assert store.read("/local/domain/1/device/x") == "1"
        assert guest.read("name") == "Domain-1"
        assert refused(guest.write, "device/" + "x" * 2048, "") == errno.EINVAL
    store.write("x", "2")
    assert store.read("/local/domain/0/x") == "2"


def test_values_up_to_the_payload_limit(store: Store) -> None:
    store.write("/a", "x" * (4080 - 3))  # 4,096 bytes with the header
    assert len(store.read("/a")) == 4077
    assert refused(store.write, "/a", "x" * (4080 - 2)) == errno.E2BIG


def test_a_directory_too_long_for_an_answer_is_an_error(store: Store) -> None:
    for number in range(45):
        store.mkdir(f"/d/{number:0100}")
    assert refused(store.directory, "/d") == errno.E2BIG
    assert store.read("/d") == ""


def test_domain_paths(store: Store) -> None:
    assert store.get_domain_path(5) == "/local/domain/5"
    assert store.is_domain_introduced(0)
    assert not store.is_domain_introduced(99)
