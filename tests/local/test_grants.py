"""Grants keep Xen's rules: who may map what, how, and for how long."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from pathlib import Path

import pytest

from emulator.local import wire
from tests.local.client import Client


def test_both_domains_see_the_same_pages(machine: Path) -> None:
    with Client(machine, 1) as guest, Client(machine, 0) as backend:
        first, shared = guest.share(0, 3)
        assert shared.memory[:] == bytes(3 * 4096)
        _, [mapped] = backend.map(1, first, 3)
        shared.memory[4096 + 5] = 17
        assert mapped.memory[4096 + 5] == 17
        mapped.memory[2 * 4096] = 9
        assert shared.memory[2 * 4096] == 9


def test_a_part_of_a_grant_maps_at_its_place(machine: Path) -> None:
    with Client(machine, 1) as guest, Client(machine, 0) as backend:
        first, shared = guest.share(0, 4)
        shared.memory[2 * 4096] = 33
        _, [mapped] = backend.map(1, first + 2, 2)
        assert len(mapped.memory) == 2 * 4096
        assert mapped.memory[0] == 33


def test_consecutive_references_of_several_grants_map_together(machine: Path) -> None:
    with Client(machine, 1) as guest, Client(machine, 0) as backend:
        grants = [guest.share(0, 2) for _ in range(3)]
        first = grants[0][0]
        assert [ref for ref, _ in grants] == [first, first + 2, first + 4]
        for number, (_, shared) in enumerate(grants):
            shared.memory[0] = number + 1
        _, runs = backend.map(1, first + 1, 4)
        assert [len(run.memory) // 4096 for run in runs] == [1, 2, 1]
        assert [run.memory[0] for run in runs] == [0, 2, 3]


def test_a_grant_maps_only_for_its_grantee(machine: Path) -> None:
    with Client(machine, 1) as guest, Client(machine, 2) as other, Client(machine, 0) as dom0:
        first, _ = guest.share(0)
        assert other.refused(wire.GRANT_MAP, 1, first, 1, 0) == errno.EACCES
        second, _ = guest.share(2)
        assert dom0.refused(wire.GRANT_MAP, 1, second, 1, 0) == errno.EACCES
        assert dom0.refused(wire.GRANT_MAP, 1, first, 2, 0) == errno.EACCES
        dom0.map(1, first)


def test_a_read_only_grant_gives_no_way_to_write(machine: Path) -> None:
    with Client(machine, 1) as guest, Client(machine, 0) as backend:
        first, shared = guest.share(0, writable=False)
        assert backend.refused(wire.GRANT_MAP, 1, first, 1, wire.WRITABLE) == errno.EACCES
        _, [mapped] = backend.map(1, first, writable=False)
        with pytest.raises(PermissionError):
            mmap.mmap(mapped.fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(mapped.fd, b"x")
        shared.memory[0] = 5
        assert mapped.memory[0] == 5


@pytest.mark.parametrize("ref", [0, 1, 7, 9, 10, 2**31, 2**32 - 1])
def test_unknown_references_are_refused(machine: Path, ref: int) -> None:
    with Client(machine, 1) as guest, Client(machine, 0) as backend:
        first, _ = guest.share(0)
        assert first == 8
        assert backend.refused(wire.GRANT_MAP, 1, ref, 1, 0) == errno.ENOENT
        assert backend.refused(wire.GRANT_MAP, 99, first, 1, 0) == errno.ENOENT
        assert backend.refused(wire.GRANT_MAP, 1, first, 2, 0) == errno.ENOENT


@pytest.mark.parametrize("count", [0, 65537, 2**31, 2**32 - 1])
def test_absurd_counts_are_refused(machine: Path, count: int) -> None:
    with Client(machine, 1) as guest, Client(machine, 0) as backend:
        first, _ = guest.share(0)
        assert backend.refused(wire.GRANT_MAP, 1, first, count, 0) == errno.EINVAL
        assert guest.refused(wire.GRANT_SHARE, 0, count, 0) == (errno.ENOSPC if count else errno.EINVAL)


def test_a_withdrawn_grant_stays_with_its_mapper_and_nobody_else(machine: Path) -> None:
    with Client(machine, 1) as guest, Client(machine, 0) as backend:
        first, shared = guest.share(0)
        handle, [mapped] = backend.map(1, first)
        guest.call(wire.GRANT_UNSHARE, first)
        assert backend.refused(wire.GRANT_MAP, 1, first, 1, 0) == errno.ENOENT
        shared.memory[0] = 1
        assert mapped.memory[0] == 1
        second, _ = guest.share(0)
        assert second != first, "a reference in use was given again"
        backend.call(wire.GRANT_UNMAP, handle)
        third, _ = guest.share(0)
        assert third == first


def test_only_the_process_that_granted_withdraws(machine: Path) -> None:
    with Client(machine, 1) as guest, Client(machine, 1) as sibling, Client(machine, 0) as backend:
        first, _ = guest.share(0)
        assert sibling.refused(wire.GRANT_UNSHARE, first) == errno.ENOENT
        assert guest.refused(wire.GRANT_UNSHARE, first + 1) == errno.ENOENT
        handle, _ = backend.map(1, first)
        assert guest.refused(wire.GRANT_UNMAP, handle) == errno.ENOENT
        guest.call(wire.GRANT_UNSHARE, first)
        assert guest.refused(wire.GRANT_UNSHARE, first) == errno.ENOENT


def test_a_guest_cannot_resize_or_seal_what_it_granted(machine: Path) -> None:
    with Client(machine, 1) as guest:
        _, shared = guest.share(0, 2)
        for size in (0, 4096, 3 * 4096):
            with pytest.raises(PermissionError):
                os.ftruncate(shared.fd, size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(shared.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_the_page_quota_counts_what_is_still_mapped(machine: Path) -> None:
    with Client(machine, 1) as guest, Client(machine, 0) as backend:
        first, _ = guest.share(0, 65536)
        backend.map(1, first)
        guest.call(wire.GRANT_UNSHARE, first)
        assert guest.refused(wire.GRANT_SHARE, 0, 1, 0) == errno.ENOSPC
    with Client(machine, 1) as guest:
        first, _ = guest.share(0, 65536)
        assert guest.refused(wire.GRANT_SHARE, 0, 1, 0) == errno.ENOSPC
        guest.call(wire.GRANT_UNSHARE, first)
        guest.share(0)


def test_one_guest_cannot_take_all_descriptors_of_the_broker(machine: Path) -> None:
    with Client(machine, 1) as guest, Client(machine, 2) as neighbour:
        refs, error = guest.until_refused(wire.GRANT_SHARE, 0, 1, 0)
        assert error == errno.ENOSPC
        assert len(refs) >= 100
        neighbour.share(0)


def test_a_grant_to_a_domain_that_does_not_exist_is_refused(machine: Path) -> None:
    with Client(machine, 1) as guest:
        assert guest.refused(wire.GRANT_SHARE, 77, 1, 0) == errno.ENOENT
