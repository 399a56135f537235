"""A process of a domain, without the C++ engine: it can also say what the engine never would."""

from __future__ import annotations

import mmap
import os
import select
import socket
from pathlib import Path
from types import TracebackType

from cpp_ring.unix_socket import connect
from emulator.local import wire


class Client:
    """One connection to a `hypervisor` socket."""

    def __init__(self, directory: Path, domid: int, hello: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connect(self.socket, directory / f"dom{domid}" / "hypervisor", 10)
            if hello:
                self.call(wire.HELLO, wire.VERSION)
        except OSError:
            self.socket.close()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """What the broker sees of a process that dies."""
        self.socket.close()

    def call(self, op: int, *arguments: int) -> wire.Reply:
        return wire.exchange(self.socket, op, *arguments)

    def refused(self, op: int, *arguments: int) -> int:
        """The errno of a request that must fail."""
        try:
            reply = self.call(op, *arguments)
        except OSError as error:
            return error.errno or 0
        raise AssertionError(f"operation {op} {arguments} was not refused: {reply}")

    def until_refused(self, op: int, *arguments: int) -> tuple[list[int], int]:
        """Repeats a request until it fails: the values of the replies, and the errno."""
        values: list[int] = []
        while True:
            try:
                reply = self.call(op, *arguments)
            except OSError as error:
                return values, error.errno or 0
            values.append(reply.value)
            for fd in reply.fds:
                os.close(fd)

    def share(self, domid: int, count: int = 1, writable: bool = True) -> tuple[int, Pages]:
        reply = self.call(wire.GRANT_SHARE, domid, count, wire.WRITABLE if writable else 0)
        return reply.value, Pages(reply.fds[0], 0, count, True)

    def share_notify(self, domid: int, offset: int, port: int) -> tuple[int, Pages]:
        reply = self.call(wire.GRANT_SHARE, domid, 1, wire.WRITABLE | wire.NOTIFY, offset, port)
        return reply.value, Pages(reply.fds[0], 0, 1, True)

    def map(self, domid: int, first: int, count: int = 1, writable: bool = True) -> tuple[int, list[Pages]]:
        reply = self.call(wire.GRANT_MAP, domid, first, count, wire.WRITABLE if writable else 0)
        runs = wire.RUN.iter_unpack(reply.records)
        pages = [Pages(fd, page, n, writable) for (page, n), fd in zip(runs, reply.fds, strict=True)]
        return reply.value, pages

    def map_notify(self, domid: int, ref: int, offset: int, port: int) -> tuple[int, Pages]:
        reply = self.call(wire.GRANT_MAP, domid, ref, 1, wire.WRITABLE | wire.NOTIFY, offset, port)
        ((page, count),) = wire.RUN.iter_unpack(reply.records)
        return reply.value, Pages(reply.fds[0], page, count, True)

    def alloc_unbound(self, remote: int) -> Channel:
        reply = self.call(wire.EVTCHN_ALLOC_UNBOUND, remote)
        return Channel(reply.value, reply.fds[0])

    def bind(self, remote: int, port: int) -> Channel:
        reply = self.call(wire.EVTCHN_BIND_INTERDOMAIN, remote, port)
        return Channel(reply.value, reply.fds[0])


class Pages:
    """Granted pages: the memfd, and a mapping of it."""

    def __init__(self, fd: int, page: int, count: int, writable: bool) -> None:
        self.fd = fd
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        self.memory = mmap.mmap(fd, count * wire.PAGE_SIZE, access=access, offset=page * wire.PAGE_SIZE)

    def __del__(self) -> None:
        if hasattr(self, "memory"):
            self.memory.close()
        os.close(self.fd)


class Channel:
    """A port and its socket."""

    def __init__(self, port: int, fd: int) -> None:
        self.port = port
        self.socket = socket.socket(fileno=fd)

    def __del__(self) -> None:
        self.socket.close()

    def notify(self) -> None:
        self.socket.send(b"\0", socket.MSG_DONTWAIT)

    def wait(self, seconds: float = 10.0) -> bool:
        """Waits for an event and takes it, with all that came before."""
        if not select.select([self.socket], [], [], seconds)[0]:
            return False
        return bool(self.socket.recv(4096, socket.MSG_DONTWAIT))

    def quiet(self) -> bool:
        """No event is there."""
        return not select.select([self.socket], [], [], 0)[0]
