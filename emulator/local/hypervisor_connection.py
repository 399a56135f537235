"""One connection to a `hypervisor` socket: what one process has shared, mapped and bound (docs/local.md)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from emulator.local import wire
from emulator.local.domain import Domain
from emulator.local.errors import Refused
from emulator.local.fault_plan import MAX_FAULTS, Fault
from emulator.local.grants import GrantTable, Run, Share
from emulator.local.ports import Port
from emulator.local.wire import PAGE_SIZE, REPLY, REQUEST, RUN

if TYPE_CHECKING:
    from emulator.local.broker import Broker

SIOCOUTQ: Final = 0x5411
"""Bytes this socket has sent that nobody has read (linux/sockios.h; the socket module has no name for it)."""


class Notify(NamedTuple):
    """What to do when pages are let go: clear the byte at `offset` of `share`, raise the peer of `port`."""

    share: Share
    offset: int
    port: int


class Shared(NamedTuple):
    share: Share
    notify: Notify | None


class Mapped(NamedTuple):
    table: GrantTable
    runs: list[Run]
    notify: Notify | None


class Answer(NamedTuple):
    """`owned`: descriptors to close once they are sent."""

    value: int = 0
    records: bytes = b""
    record_count: int = 0
    fds: Sequence[int] = ()
    owned: bool = True


class HypervisorConnection:
    """One request at a time; a client that asks again before it has read its answer is cut off."""

    def __init__(self, connection: socket.socket, domain: Domain, broker: Broker) -> None:
        self.domid = domain.domid
        self.closed = False
        self._socket = connection
        self._domain = domain
        self._broker = broker
        self._shares: dict[int, Shared] = {}
        self._mappings: dict[int, Mapped] = {}
        self._next_handle = 1
        self._ports: dict[int, Port] = {}
        self._late: tuple[int, Answer] | None = None

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def blocked(self) -> bool:
        """Its answer is being held back by the fault plan."""
        return self._late is not None

    def readable(self) -> bool:
        """Answers one request; False when the connection is to be closed."""
        try:
            packet = self._socket.recv(REQUEST.size + 1)
        except BlockingIOError:
            return True
        except OSError:
            return False
        # Unread answers would pile up descriptors in flight, of which the whole user has a limited number.
        if not packet or self._unread():
            return False
        error, answer, delay_ms = self._serve(packet)
        if delay_ms:
            self._late = error, answer
            self._broker.later(delay_ms, self)
            return True
        return self._send(error, answer)

    def send_late(self) -> bool:
        """The held answer; False when the connection is to be closed."""
        assert self._late is not None
        (error, answer), self._late = self._late, None
        return self._send(error, answer)

    def close(self) -> None:
        """The process is gone, or lets go of everything: clear live bytes and say so, then take all of it back."""
        self.closed = True
        if self._late is not None:
            self._close_fds(self._late[1])
        for mapped in self._mappings.values():
            self._let_go(mapped.notify)
            mapped.table.unmap(mapped.runs)
        for shared in self._shares.values():
            self._let_go(shared.notify)
            self._domain.grants.withdraw(shared.share)
        for port in self._ports.values():
            if port.peer is not None:
                port.peer.raise_event()
            self._domain.ports.close(port)
        self._mappings.clear()
        self._shares.clear()
        self._ports.clear()
        self._socket.close()

    def _unread(self) -> bool:
        (count,) = struct.unpack("i", fcntl.ioctl(self._socket, SIOCOUTQ, b"\0\0\0\0"))
        return bool(count)

    def _serve(self, packet: bytes) -> tuple[int, Answer, int]:
        """(errno, answer, how long to hold it back)."""
        if len(packet) != REQUEST.size:
            return errno.EINVAL, Answer(), 0
        op, *arguments = REQUEST.unpack(packet)
        delay_ms = 0
        try:
            if op not in OPERATIONS:
                raise Refused(errno.ENOSYS)
            operation, used, privileged = OPERATIONS[op]
            if privileged and self.domid != 0:
                raise Refused(errno.EPERM)
            if any(arguments[used:]):
                raise Refused(errno.EINVAL)
            if not privileged and op != wire.HELLO:  # whoever planned too much must be able to connect and clear it
                error, delay_ms = self._broker.plan.take(op, self.domid)
                if error:
                    raise Refused(error)
            return 0, operation(self, *arguments[:used]), delay_ms
        except Refused as refused:
            return refused.errno, Answer(), delay_ms
        except OSError as error:  # out of descriptors or memory
            return error.errno or errno.EIO, Answer(), delay_ms

    def _send(self, error: int, answer: Answer) -> bool:
        message = REPLY.pack(error, answer.value, answer.record_count, 0) + answer.records
        try:
            socket.send_fds(self._socket, [message], answer.fds, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        except OSError:
            return False
        finally:
            self._close_fds(answer)
        return True

    @staticmethod
    def _close_fds(answer: Answer) -> None:
        if answer.owned:
            for fd in answer.fds:
                os.close(fd)

    # ---- operations ----

    def _hello(self, version: int) -> Answer:
        if version != wire.VERSION:
            raise Refused(errno.EPROTO)
        return Answer(os.getpid())

    def _share(self, grantee: int, count: int, flags: int, offset: int, number: int) -> Answer:
        self._broker.domain(grantee)
        self._check_notify(count, flags, offset, number)
        share = self._domain.grants.share(grantee, count, bool(flags & wire.WRITABLE))
        try:
            fd = share.open(True)
        except OSError:
            self._domain.grants.withdraw(share)
            raise
        notify = Notify(share, offset, number) if flags & wire.NOTIFY else None
        self._shares[share.first] = Shared(share, notify)
        return Answer(share.first, fds=[fd])

    def _unshare(self, first: int) -> Answer:
        shared = self._shares.pop(first, None)
        if shared is None:
            raise Refused(errno.ENOENT)
        self._let_go(shared.notify)
        self._domain.grants.withdraw(shared.share)
        return Answer()

    def _map(self, domid: int, first: int, count: int, flags: int, offset: int, number: int) -> Answer:
        table = self._broker.domain(domid).grants
        self._check_notify(count, flags, offset, number)
        if flags & wire.NOTIFY and (count != 1 or not flags & wire.WRITABLE):
            raise Refused(errno.EINVAL)
        if len(self._mappings) >= self._broker.limits.mappings:
            raise Refused(errno.ENOSPC)
        runs = table.map(self.domid, first, count, bool(flags & wire.WRITABLE))
        fds: list[int] = []
        try:
            for run in runs:
                fds.append(run.share.open(bool(flags & wire.WRITABLE)))
        except OSError:
            table.unmap(runs)
            self._close_fds(Answer(fds=fds))
            raise
        notify = Notify(runs[0].share, runs[0].page * PAGE_SIZE + offset, number) if flags & wire.NOTIFY else None
        handle = self._take_handle()
        self._mappings[handle] = Mapped(table, runs, notify)
        records = b"".join(RUN.pack(run.page, run.pages) for run in runs)
        return Answer(handle, records, len(runs), fds)

    def _unmap(self, handle: int) -> Answer:
        mapped = self._mappings.pop(handle, None)
        if mapped is None:
            raise Refused(errno.ENOENT)
        self._let_go(mapped.notify)
        mapped.table.unmap(mapped.runs)
        return Answer()

    def _alloc_unbound(self, remote: int) -> Answer:
        self._broker.domain(remote)
        return self._new_port(self._domain.ports.alloc_unbound(remote))

    def _bind_interdomain(self, remote: int, number: int) -> Answer:
        offered = self._broker.domain(remote).ports.get(number)
        if offered is None:
            raise Refused(errno.EINVAL)
        return self._new_port(self._domain.ports.bind(offered))

    def _close_port(self, number: int) -> Answer:
        port = self._ports.pop(number, None)
        if port is None:
            raise Refused(errno.ENOENT)
        self._domain.ports.close(port)
        return Answer()

    def _create_domain(self, domid: int) -> Answer:
        self._broker.create_domain(domid)
        return Answer()

    def _destroy_domain(self, domid: int) -> Answer:
        self._broker.destroy_domain(domid)
        return Answer()

    def _list_domains(self) -> Answer:
        domids = sorted(self._broker.domains)
        return Answer(0, b"".join(wire.DOMAIN.pack(domid) for domid in domids), len(domids))

    def _stop(self) -> Answer:
        self._broker.stop()
        return Answer()

    def _plan_fault(self, op: int, domid: int, after: int, times: int, error: int, delay_ms: int) -> Answer:
        if len(self._broker.plan) >= MAX_FAULTS:
            raise Refused(errno.ENOSPC)
        self._broker.plan.add(Fault(op, domid, after, times, error, delay_ms))
        return Answer()

    def _plan_storm(self, domid: int, number: int, count: int) -> Answer:
        if self._broker.domain(domid).ports.get(number) is None:
            raise Refused(errno.EINVAL)
        self._broker.storm(domid, number, count)
        return Answer()

    def _plan_clear(self) -> Answer:
        self._broker.clear_plan()
        return Answer()

    # ---- what they share ----

    def _new_port(self, port: Port) -> Answer:
        self._ports[port.number] = port
        return Answer(port.number, fds=[port.near.fileno()], owned=False)

    def _take_handle(self) -> int:
        while self._next_handle in self._mappings or self._next_handle == 0:
            self._next_handle = (self._next_handle + 1) & 0xFFFFFFFF
        handle, self._next_handle = self._next_handle, (self._next_handle + 1) & 0xFFFFFFFF
        return handle

    def _check_notify(self, count: int, flags: int, offset: int, number: int) -> None:
        if flags & ~(wire.WRITABLE | wire.NOTIFY):
            raise Refused(errno.EINVAL)
        if not flags & wire.NOTIFY:
            if offset or number:
                raise Refused(errno.EINVAL)
        elif offset >= count * PAGE_SIZE or number not in self._ports:
            raise Refused(errno.EINVAL)

    def _let_go(self, notify: Notify | None) -> None:
        if notify is None:
            return
        with contextlib.suppress(OSError):  # out of memory: the rest must still be taken back
            os.pwrite(notify.share.fd, b"\0", notify.offset)
        port = self._ports.get(notify.port)
        if port is not None and port.peer is not None:
            port.peer.raise_event()


OPERATIONS: Final[dict[int, tuple[Callable[..., Answer], int, bool]]] = {
    # op: (method, number of arguments, for dom0 alone)
    wire.HELLO: (HypervisorConnection._hello, 1, False),
    wire.GRANT_SHARE: (HypervisorConnection._share, 5, False),
    wire.GRANT_UNSHARE: (HypervisorConnection._unshare, 1, False),
    wire.GRANT_MAP: (HypervisorConnection._map, 6, False),
    wire.GRANT_UNMAP: (HypervisorConnection._unmap, 1, False),
    wire.EVTCHN_ALLOC_UNBOUND: (HypervisorConnection._alloc_unbound, 1, False),
    wire.EVTCHN_BIND_INTERDOMAIN: (HypervisorConnection._bind_interdomain, 2, False),
    wire.EVTCHN_CLOSE: (HypervisorConnection._close_port, 1, False),
    wire.DOMAIN_CREATE: (HypervisorConnection._create_domain, 1, True),
    wire.DOMAIN_DESTROY: (HypervisorConnection._destroy_domain, 1, True),
    wire.DOMAIN_LIST: (HypervisorConnection._list_domains, 0, True),
    wire.STOP: (HypervisorConnection._stop, 0, True),
    wire.PLAN_FAULT: (HypervisorConnection._plan_fault, 6, True),
    wire.PLAN_STORM: (HypervisorConnection._plan_storm, 3, True),
    wire.PLAN_CLEAR: (HypervisorConnection._plan_clear, 0, True),
}
