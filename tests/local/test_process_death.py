"""What a process held is taken back when it dies: live bytes cleared, ports raised, grants revoked."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from emulator.local import wire
from tests.local.client import Client

LIVE = 8


def test_a_dead_backend_clears_its_live_byte_and_raises_the_port(machine: Path) -> None:
    with Client(machine, 1) as guest:
        ref, page = guest.share(0)
        offered = guest.alloc_unbound(0)
        backend = Client(machine, 0)
        bound = backend.bind(1, offered.port)
        backend.map_notify(1, ref, LIVE, bound.port)
        page.memory[LIVE - 1 : LIVE + 2] = b"\1\1\1"
        backend.close()
        assert offered.wait()
        assert page.memory[LIVE - 1 : LIVE + 2] == b"\1\0\1"


def test_a_dead_frontend_clears_its_live_byte_in_what_the_backend_maps(machine: Path) -> None:
    with Client(machine, 0) as backend:
        guest = Client(machine, 1)
        offered = guest.alloc_unbound(0)
        ref, page = guest.share_notify(0, LIVE, offered.port)
        bound = backend.bind(1, offered.port)
        _, [mapped] = backend.map(1, ref)
        assert bound.wait()
        page.memory[LIVE] = 1
        guest.close()
        assert bound.wait()
        assert mapped.memory[LIVE] == 0


def test_orderly_unmap_and_unshare_clear_the_byte_as_well(machine: Path) -> None:
    with Client(machine, 1) as guest, Client(machine, 0) as backend:
        offered = guest.alloc_unbound(0)
        bound = backend.bind(1, offered.port)
        assert bound.wait()
        ref, page = guest.share_notify(0, LIVE, offered.port)
        handle, mapped = backend.map_notify(1, ref, LIVE + 1, bound.port)
        page.memory[LIVE : LIVE + 2] = b"\1\1"
        backend.call(wire.GRANT_UNMAP, handle)
        assert page.memory[LIVE : LIVE + 2] == b"\1\0"
        assert offered.wait()
        guest.call(wire.GRANT_UNSHARE, ref)
        assert mapped.memory[LIVE] == 0
        assert bound.wait()


def test_death_clears_only_at_the_offset_inside_the_mapped_page(machine: Path) -> None:
    with Client(machine, 1) as guest:
        first, pages = guest.share(0, 3)
        offered = guest.alloc_unbound(0)
        backend = Client(machine, 0)
        bound = backend.bind(1, offered.port)
        backend.map_notify(1, first + 1, 4095, bound.port)
        pages.memory[:] = b"\1" * (3 * 4096)
        backend.close()
        assert offered.wait()
        assert [at for at, byte in enumerate(pages.memory[:]) if byte == 0] == [4096 + 4095]


def test_a_dead_process_leaves_its_peers_ports_free_to_bind(machine: Path) -> None:
    with Client(machine, 1) as guest:
        offered = guest.alloc_unbound(0)
        backend = Client(machine, 0)
        bound = backend.bind(1, offered.port)
        backend.close()
        assert offered.wait(), "the peer is told once"
        assert offered.quiet()
        with Client(machine, 0) as restarted:
            again = restarted.bind(1, offered.port)
            assert again.port == bound.port
            again.notify()
            assert offered.wait()


def test_a_dead_frontends_grants_are_revoked_and_its_mapped_pages_stay(machine: Path) -> None:
    with Client(machine, 0) as backend:
        guest = Client(machine, 1)
        offered = guest.alloc_unbound(0)
        bound = backend.bind(1, offered.port)
        assert bound.wait()
        first, page = guest.share(0, 2)
        page.memory[0] = 42
        handle, [mapped] = backend.map(1, first)
        guest.close()
        assert bound.wait()
        assert backend.refused(wire.GRANT_MAP, 1, first, 1, 0) == errno.ENOENT
        assert backend.refused(wire.GRANT_MAP, 1, first + 1, 1, 0) == errno.ENOENT
        assert mapped.memory[0] == 42
        with Client(machine, 1) as reborn:
            other, _ = reborn.share(0)
            assert other == first + 2
            backend.call(wire.GRANT_UNMAP, handle)
            assert reborn.share(0)[0] == first


def test_a_guest_cannot_keep_the_broker_from_clearing_its_byte(machine: Path) -> None:
    """O_APPEND on a shared file description would turn the broker's pwrite into a refused append."""
    with Client(machine, 0) as backend:
        guest = Client(machine, 1)
        offered = guest.alloc_unbound(0)
        bound = backend.bind(1, offered.port)
        assert bound.wait()
        ref, page = guest.share_notify(0, LIVE, offered.port)
        _, [mapped] = backend.map(1, ref)
        page.memory[LIVE] = 1
        fcntl.fcntl(page.fd, fcntl.F_SETFL, fcntl.fcntl(page.fd, fcntl.F_GETFL) | os.O_APPEND)
        guest.close()
        assert bound.wait()
        assert mapped.memory[LIVE] == 0


def test_a_notify_needs_a_port_of_the_same_process_and_an_offset_in_the_page(machine: Path) -> None:
    with Client(machine, 1) as guest, Client(machine, 1) as sibling, Client(machine, 0) as backend:
        ref, _ = guest.share(0)
        offered = guest.alloc_unbound(0)
        flags = wire.WRITABLE | wire.NOTIFY
        assert sibling.refused(wire.GRANT_SHARE, 0, 1, flags, 0, offered.port) == errno.EINVAL
        assert guest.refused(wire.GRANT_SHARE, 0, 1, flags, 4096, offered.port) == errno.EINVAL
        assert guest.refused(wire.GRANT_SHARE, 0, 1, wire.WRITABLE, 0, offered.port) == errno.EINVAL
        bound = backend.bind(1, offered.port)
        assert backend.refused(wire.GRANT_MAP, 1, ref, 1, flags, 4096, bound.port) == errno.EINVAL
        assert backend.refused(wire.GRANT_MAP, 1, ref, 1, wire.NOTIFY, 0, bound.port) == errno.EINVAL
        assert backend.refused(wire.GRANT_MAP, 1, ref, 1, flags, 2**32 - 1, bound.port) == errno.EINVAL
        # Nothing of what was refused is left behind.
        assert guest.share(0)[0] == ref + 1


def test_a_notify_whose_port_was_closed_still_clears_the_byte(machine: Path) -> None:
    with Client(machine, 1) as guest, Client(machine, 0) as backend:
        offered = guest.alloc_unbound(0)
        bound = backend.bind(1, offered.port)
        ref, page = guest.share(0)
        handle, _ = backend.map_notify(1, ref, LIVE, bound.port)
        backend.call(wire.EVTCHN_CLOSE, bound.port)
        page.memory[LIVE] = 1
        backend.call(wire.GRANT_UNMAP, handle)
        assert page.memory[LIVE] == 0
