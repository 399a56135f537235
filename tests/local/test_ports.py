"""Event channels keep Xen's rules, and a peer has no hold on the other side."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from emulator.local import wire
from tests.local.client import Client


def test_events_cross_in_both_directions(machine: Path) -> None:
    with Client(machine, 1) as guest, Client(machine, 0) as backend:
        offered = guest.alloc_unbound(0)
        bound = backend.bind(1, offered.port)
        assert bound.wait(), "binding leaves the port pending"
        assert offered.quiet()
        offered.notify()
        assert bound.wait()
        bound.notify()
        assert offered.wait()
        assert bound.quiet()
        assert offered.quiet()


def test_an_event_from_before_binding_is_not_lost(machine: Path) -> None:
    with Client(machine, 1) as guest, Client(machine, 0) as backend:
        offered = guest.alloc_unbound(0)
        offered.notify()
        assert backend.bind(1, offered.port).wait()


def test_many_events_are_one(machine: Path) -> None:
    with Client(machine, 1) as guest, Client(machine, 0) as backend:
        offered = guest.alloc_unbound(0)
        bound = backend.bind(1, offered.port)
        for _ in range(10_000):
            try:
                offered.notify()
            except BlockingIOError:
                continue
        assert bound.wait()
        assert bound.quiet()


def test_a_port_binds_once(machine: Path) -> None:
    with Client(machine, 1) as guest, Client(machine, 0) as backend, Client(machine, 0) as second:
        offered = guest.alloc_unbound(0)
        backend.bind(1, offered.port)
        assert second.refused(wire.EVTCHN_BIND_INTERDOMAIN, 1, offered.port) == errno.EBUSY
        assert backend.refused(wire.EVTCHN_BIND_INTERDOMAIN, 1, offered.port) == errno.EBUSY


def test_a_port_binds_only_for_the_domain_it_was_offered_to(machine: Path) -> None:
    with Client(machine, 1) as guest, Client(machine, 0) as dom0, Client(machine, 2) as other:
        offered = guest.alloc_unbound(0)
        assert other.refused(wire.EVTCHN_BIND_INTERDOMAIN, 1, offered.port) == errno.EINVAL
        assert guest.refused(wire.EVTCHN_BIND_INTERDOMAIN, 1, offered.port) == errno.EINVAL
        assert dom0.refused(wire.EVTCHN_BIND_INTERDOMAIN, 2, offered.port) == errno.EINVAL
        bound = dom0.bind(1, offered.port)
        # A bound port was offered to nobody.
        assert guest.refused(wire.EVTCHN_BIND_INTERDOMAIN, 0, bound.port) == errno.EBUSY


@pytest.mark.parametrize("port", [0, 2, 1000, 2**32 - 1])
def test_unknown_ports_and_domains_are_refused(machine: Path, port: int) -> None:
    with Client(machine, 1) as guest, Client(machine, 0) as backend:
        guest.alloc_unbound(0)
        assert backend.refused(wire.EVTCHN_BIND_INTERDOMAIN, 1, port) == errno.EINVAL
        assert backend.refused(wire.EVTCHN_BIND_INTERDOMAIN, 99, 1) == errno.ENOENT
        assert backend.refused(wire.EVTCHN_ALLOC_UNBOUND, 99) == errno.ENOENT
        assert guest.refused(wire.EVTCHN_CLOSE, port) == errno.ENOENT


def test_after_one_side_closes_the_other_can_be_bound_again(machine: Path) -> None:
    with Client(machine, 1) as guest, Client(machine, 0) as backend:
        offered = guest.alloc_unbound(0)
        bound = backend.bind(1, offered.port)
        backend.call(wire.EVTCHN_CLOSE, bound.port)
        assert backend.refused(wire.EVTCHN_CLOSE, bound.port) == errno.ENOENT
        again = backend.bind(1, offered.port)
        assert again.wait()
        offered.notify()
        assert again.wait()
        guest.call(wire.EVTCHN_CLOSE, offered.port)
        third = guest.bind(0, again.port)
        again.notify()
        assert third.wait()


def test_a_port_belongs_to_the_process_that_made_it(machine: Path) -> None:
    with Client(machine, 1) as guest, Client(machine, 1) as sibling:
        offered = guest.alloc_unbound(0)
        assert sibling.refused(wire.EVTCHN_CLOSE, offered.port) == errno.ENOENT


def test_ports_are_limited_and_their_numbers_come_back(machine: Path) -> None:
    with Client(machine, 1) as guest:
        numbers, error = guest.until_refused(wire.EVTCHN_ALLOC_UNBOUND, 0)
        assert error == errno.ENOSPC
        assert numbers == list(range(1, len(numbers) + 1))
        for number in (5, 3):
            guest.call(wire.EVTCHN_CLOSE, number)
        assert [guest.alloc_unbound(0).port for _ in range(2)] == [3, 5]


def test_a_guest_cannot_make_the_backends_end_block(machine: Path) -> None:
    """Each end has its own flags: what the guest does to its own does not reach the backend's (why not eventfds)."""
    with Client(machine, 1) as guest, Client(machine, 0) as backend:
        offered = guest.alloc_unbound(0)
        bound = backend.bind(1, offered.port)
        assert bound.wait()
        os.set_blocking(offered.socket.fileno(), True)
        offered.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        for _ in range(1000):  # nobody reads: full, and still no wait
            try:
                bound.notify()
            except BlockingIOError:
                break
        else:
            raise AssertionError("a channel must not take events without end")
        assert offered.wait()


def test_a_channel_that_the_guest_shut_down_says_so_once(machine: Path) -> None:
    with Client(machine, 1) as guest, Client(machine, 0) as backend:
        offered = guest.alloc_unbound(0)
        bound = backend.bind(1, offered.port)
        assert bound.wait()
        offered.socket.shutdown(socket.SHUT_RDWR)
        assert bound.socket.recv(1) == b""
        with pytest.raises(BrokenPipeError):
            bound.notify()
        backend.call(wire.EVTCHN_CLOSE, bound.port)
