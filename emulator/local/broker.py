"""The process behind a local machine: listens as every domain, in one thread, and sleeps when nobody asks."""

from __future__ import annotations

import contextlib
import errno
import heapq
import os
import selectors
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from emulator.local.domain import Domain
from emulator.local.errors import Refused
from emulator.local.fault_plan import FaultPlan
from emulator.local.hypervisor_connection import HypervisorConnection
from emulator.local.limits import LAST_DOMID, Limits, raise_descriptor_limit
from emulator.local.machine import lock_machine, socket_path
from emulator.local.store import StoreServer
from emulator.local.store_connection import StoreConnection

Connection = StoreConnection | HypervisorConnection

STORM_BATCH: Final = 16


class Listener:
    """One of a domain's two sockets."""

    def __init__(self, path: Path, kind: socket.SocketKind, domain: Domain) -> None:
        self.domain = domain
        self.kind = kind
        self.connections: dict[Connection, None] = {}
        self.socket = socket.socket(socket.AF_UNIX, kind)
        try:
            self.socket.bind(os.fspath(path))
            self.socket.listen(128)
        except OSError:
            self.socket.close()
            raise
        self.socket.setblocking(False)

    def fileno(self) -> int:
        return self.socket.fileno()


class Broker:
    """Made, it can be connected to; `run` serves until `stop`, which may come from any thread, or `close`.

    Raises MachineError EBUSY if the machine has a broker. What a client does is never logged: nobody floods the log.
    """

    def __init__(self, directory: Path, domains: Iterable[int] = range(1, 9), limits: Limits | None = None) -> None:
        """`domains`: those there from the start, besides dom0."""
        self._directory = directory
        self._lock = lock_machine(directory)
        self.limits = limits or Limits(descriptors=raise_descriptor_limit())
        self.domains: dict[int, Domain] = {}
        self.plan = FaultPlan()
        self._store = StoreServer(self.limits, self.domains.__contains__)
        self._selector = selectors.DefaultSelector()
        self._connections: dict[Connection, Listener] = {}
        self._interest: dict[Connection, int] = {}
        self._listeners: dict[int, list[Listener]] = {}
        self._late: list[tuple[float, int, HypervisorConnection]] = []
        self._late_count = 0
        self._storms: dict[tuple[int, int], int] = {}
        self._faults_left = 10  # reports of faults of the broker itself
        self._stopping = False
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        # Given up for a moment when there are no descriptors left, to turn a connection away instead of spinning.
        self._reserve = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._remove_stale()
            for domid in sorted({0, *domains}):
                self.create_domain(domid)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Broker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self) -> None:
        """Serves until stop(), then closes."""
        try:
            while not self._stopping:
                self._turn()
        finally:
            self.close()

    def stop(self) -> None:
        """Ends run(), from any thread or signal handler."""
        self._stopping = True
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._wake_write, b"\0")

    def close(self) -> None:
        """Ends every connection and removes the sockets. Idempotent; not while another thread is in run()."""
        if self._lock < 0:
            return
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.socket.close()
        self._remove_stale()
        # Free for the next broker before the clients know that this one has ended.
        os.close(self._lock)
        self._lock = -1
        for connection in list(self._connections):
            self._drop(connection)
        self._listeners.clear()
        self._selector.close()
        for fd in (self._wake_read, self._wake_write, self._reserve):
            os.close(fd)

    # ---- domains ----

    def domain(self, domid: int) -> Domain:
        """Raises Refused ENOENT."""
        if domid not in self.domains:
            raise Refused(errno.ENOENT)
        return self.domains[domid]

    def create_domain(self, domid: int) -> None:
        """Raises Refused: EINVAL, EEXIST; OSError."""
        if domid > LAST_DOMID:
            raise Refused(errno.EINVAL)
        if domid in self.domains:
            raise Refused(errno.EEXIST)
        directory = self._directory / f"dom{domid}"
        directory.mkdir(mode=0o700, exist_ok=True)
        domain = Domain(domid, self.limits)
        listeners = self._listeners[domid] = []
        try:
            for name, kind in (("xenstored", socket.SOCK_STREAM), ("hypervisor", socket.SOCK_SEQPACKET)):
                listeners.append(Listener(socket_path(self._directory, domid, name), kind, domain))
            for listener in listeners:
                self._selector.register(listener, selectors.EVENT_READ, listener)
        except OSError:
            self._remove_domain_sockets(domid)
            raise
        self.domains[domid] = domain
        self._store.introduce(domid)

    def destroy_domain(self, domid: int) -> None:
        """The death of a domain. Raises Refused: EINVAL (dom0), ENOENT."""
        if domid == 0:
            raise Refused(errno.EINVAL)
        self.domain(domid)
        del self.domains[domid]
        for listener in self._listeners[domid]:
            for connection in list(listener.connections):
                self._drop(connection)
        self._remove_domain_sockets(domid)
        self._store.release(domid)

    def _remove_domain_sockets(self, domid: int) -> None:
        for listener in self._listeners.pop(domid):
            with contextlib.suppress(KeyError):
                self._selector.unregister(listener)
            listener.socket.close()
        shutil.rmtree(self._directory / f"dom{domid}", ignore_errors=True)

    def _remove_stale(self) -> None:
        """What an earlier broker, or this one, has in the file system. The lock says that nobody uses it."""
        for directory in self._directory.glob("dom*"):
            shutil.rmtree(directory, ignore_errors=True)

    # ---- for tests that ask for failures ----

    def later(self, delay_ms: int, connection: HypervisorConnection) -> None:
        """Sends the answer that `connection` holds back after a while."""
        self._late_count += 1
        heapq.heappush(self._late, (time.monotonic() + delay_ms / 1000, self._late_count, connection))

    def storm(self, domid: int, port: int, count: int) -> None:
        """Raises `count` more events of a port, as fast as they are taken."""
        self._storms[domid, port] = self._storms.get((domid, port), 0) + count

    def clear_plan(self) -> None:
        self.plan.clear()
        self._storms.clear()

    # ---- the loop ----

    def _turn(self) -> None:
        for key, _ in self._selector.select(self._timeout()):
            if isinstance(key.data, Listener):
                self._accept(key.data)
            elif key.data is not None:
                self._serve(key.data)
        while self._late and self._late[0][0] <= time.monotonic():
            connection = heapq.heappop(self._late)[2]
            if not connection.closed:
                self._run(connection, connection.send_late)
        for (domid, number), left in list(self._storms.items()):
            self._blow(domid, number, left)
        while talkative := self._store.take_talkative():
            for speaker in talkative:
                if not speaker.closed:
                    self._run(speaker, speaker.flush)

    def _timeout(self) -> float | None:
        if self._storms:
            return 0
        return max(0.0, self._late[0][0] - time.monotonic()) if self._late else None

    def _accept(self, listener: Listener) -> None:
        try:
            accepted, _ = listener.socket.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._turn_away(listener)
            return
        accepted.setblocking(False)
        try:
            if listener.domain.domid != 0 and len(listener.connections) >= self.limits.connections:
                raise Refused(errno.ENOSPC)
            listener.domain.account.take(1)
        except Refused:
            accepted.close()
            return
        connection: Connection
        if listener.kind == socket.SOCK_STREAM:
            connection = StoreConnection(accepted, listener.domain.domid, self._store)
        else:
            connection = HypervisorConnection(accepted, listener.domain, self)
        listener.connections[connection] = None
        self._connections[connection] = listener
        self._run(connection, lambda: True)

    def _turn_away(self, listener: Listener) -> None:
        os.close(self._reserve)
        with contextlib.suppress(OSError):
            listener.socket.accept()[0].close()
        self._reserve = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def _serve(self, connection: Connection) -> None:
        if connection.closed:  # by what another connection did in this turn
            return
        if isinstance(connection, StoreConnection) and connection.blocked:
            self._run(connection, connection.flush)
        else:
            self._run(connection, connection.readable)

    def _run(self, connection: Connection, action: Callable[[], bool]) -> None:
        """Lets a connection do its part; a fault in here costs that connection alone."""
        try:
            if action():
                self._listen_to(connection)
                return
        except Exception:
            self._report_fault()
        self._drop(connection)

    def _listen_to(self, connection: Connection) -> None:
        """To what a connection waits for: requests, room for its answers, or nothing while one is held back."""
        if not connection.blocked:
            wanted = selectors.EVENT_READ
        else:
            wanted = selectors.EVENT_WRITE if isinstance(connection, StoreConnection) else 0
        present = self._interest.get(connection, 0)
        if wanted == present:
            return
        if present == 0:
            self._selector.register(connection, wanted, connection)
        elif wanted == 0:
            self._selector.unregister(connection)
        else:
            self._selector.modify(connection, wanted, connection)
        self._interest[connection] = wanted

    def _drop(self, connection: Connection) -> None:
        if self._interest.pop(connection, 0):
            self._selector.unregister(connection)
        listener = self._connections.pop(connection)
        del listener.connections[connection]
        listener.domain.account.give_back(1)
        try:
            connection.close()
        except Exception:
            self._report_fault()

    def _blow(self, domid: int, number: int, left: int) -> None:
        domain = self.domains.get(domid)
        port = domain.ports.get(number) if domain else None
        for _ in range(min(left, STORM_BATCH) if port else 0):
            assert port is not None
            port.raise_event()
        if port is None or left <= STORM_BATCH:
            del self._storms[domid, number]
        else:
            self._storms[domid, number] = left - STORM_BATCH

    def _report_fault(self) -> None:
        if self._faults_left > 0:
            self._faults_left -= 1
            traceback.print_exc(file=sys.stderr)
