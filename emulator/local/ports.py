"""Event channels of one domain. A pair of ports is a pair of connected sockets; a byte in one is an event.

Sockets, not eventfds: O_NONBLOCK belongs to an eventfd itself, which both sides would hold, so a guest could make the
backend's read or write of it block for ever. The ends of a socket pair have nothing in common but the bytes.
"""

from __future__ import annotations

import errno
import heapq
import socket
from typing import Final

from emulator.local.errors import Refused
from emulator.local.limits import Account

SEND: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class Port:
    """One end. Unbound (`peer` is None) it is offered to domain `remote`, and again after its peer has closed."""

    __slots__ = ("account", "domid", "far", "near", "number", "peer", "remote")

    def __init__(
        self, domid: int, number: int, remote: int, near: socket.socket, far: socket.socket, account: Account
    ) -> None:
        self.domid = domid
        self.number = number
        self.remote = remote
        self.near = near  # what this side reads, and writes to raise the peer
        self.far = far
        self.account = account  # of who made the pair
        self.peer: Port | None = None

    def raise_event(self) -> None:
        """Makes this port pending. A full socket is pending already, a dead one has nobody to tell."""
        try:
            self.far.send(b"\0", SEND)
        except OSError:
            return

    def close(self) -> None:
        if self.peer is None:
            self.near.close()
            self.far.close()
            self.account.give_back(2)
        else:
            self.peer.peer = None


class PortTable:
    """The lowest free number from 1 is taken."""

    def __init__(self, domid: int, max_ports: int, account: Account) -> None:
        self._domid = domid
        self._account = account
        self._max_ports = max_ports
        self._ports: dict[int, Port] = {}
        self._free: list[int] = []

    def alloc_unbound(self, remote: int) -> Port:
        """Raises Refused ENOSPC; OSError."""
        self._check_room()
        self._account.take(2)
        try:
            near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError:
            self._account.give_back(2)
            raise
        for end in (near, far):  # the kernel's minimum: a few bytes, which are as good as many
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 0)
        return self._add(remote, near, far, self._account)

    def bind(self, offered: Port) -> Port:
        """The other end of a port that another domain, or this one, offered. Raises Refused: EINVAL, EBUSY, ENOSPC."""
        if offered.remote != self._domid:
            raise Refused(errno.EINVAL)
        if offered.peer is not None:
            raise Refused(errno.EBUSY)
        self._check_room()
        port = self._add(offered.domid, offered.far, offered.near, offered.account)
        port.peer, offered.peer = offered, port
        port.raise_event()
        return port

    def get(self, number: int) -> Port | None:
        return self._ports.get(number)

    def close(self, port: Port) -> None:
        del self._ports[port.number]
        heapq.heappush(self._free, port.number)
        port.close()

    def _check_room(self) -> None:
        if len(self._ports) >= self._max_ports:
            raise Refused(errno.ENOSPC)

    def _add(self, remote: int, near: socket.socket, far: socket.socket, account: Account) -> Port:
        number = heapq.heappop(self._free) if self._free else len(self._ports) + 1
        port = self._ports[number] = Port(self._domid, number, remote, near, far, account)
        return port
