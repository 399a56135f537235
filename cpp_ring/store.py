"""A client of xenstore: xenstored's socket, the kernel's /dev/xen/xenbus, or a local machine's broker (docs/local.md).

What is read was written by another domain: see store_values.py. A watch may fire without cause and always fires once
when it is set; events for the same path and token are merged. After more than `MAX_EVENTS` different ones the path of
the watch itself stands for the rest: whoever gets it looks at everything below.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, TypeVar

from cpp_ring import xs_wire
from cpp_ring.store_values import parse_u32, quote
from cpp_ring.unix_socket import connect
from cpp_ring.xs_wire import HEADER, PAYLOAD_MAX, SENT_MAX

Result = TypeVar("Result")
Event = tuple[str, str]
"""(path, token) of a watch that fired."""

MAX_EVENTS: Final = 1024
"""Different events kept for the reader of one Store."""

MAX_ATTEMPTS: Final = 100
"""How often a transaction is tried before its conflicts are reported."""

READ_SIZE: Final = 65536


class StoreError(OSError):
    """xenstore refused a request, broke its protocol or is gone; `errno` says which.

    ENOENT, EACCES, EAGAIN, EEXIST, EINVAL, ENOSPC, E2BIG, ...: the store's answer. ETIMEDOUT, ECONNRESET, EPROTO,
    ENOTCONN: no answer, or none that can be trusted; the Store is closed.
    """

    def __str__(self) -> str:
        return str(self.strerror)


class Access:
    """Reading and writing nodes: what a Store and a Transaction share. Every method raises StoreError.

    A path that does not start with "/" is relative to /local/domain/<own domid>.
    """

    __slots__ = ()

    def _call(self, kind: int, what: str, path: str, *strings: str, tail: bytes = b"") -> bytes:
        raise NotImplementedError

    def read(self, path: str) -> str:
        """The value of a node; bytes that are not UTF-8 become U+FFFD."""
        return self._call(xs_wire.XS_READ, "read", path).decode("utf-8", "replace")

    def read_optional(self, path: str) -> str | None:
        """The value of a node, or None if there is no such node."""
        try:
            return self.read(path)
        except StoreError as error:
            if error.errno == errno.ENOENT:
                return None
            raise

    def write(self, path: str, value: str | bytes) -> None:
        """Sets the value of a node; makes it and missing parents."""
        tail = value if isinstance(value, bytes) else value.encode()
        self._call(xs_wire.XS_WRITE, "write", path, tail=tail)

    def mkdir(self, path: str) -> None:
        """Makes a node and missing parents, with empty values, unless it is there."""
        self._call(xs_wire.XS_MKDIR, "mkdir", path)

    def rm(self, path: str) -> None:
        """Removes a node and all below; no error if it is not there but its parent is."""
        self._call(xs_wire.XS_RM, "rm", path)

    def directory(self, path: str) -> list[str]:
        """Names of the children of a node."""
        return _split(self._call(xs_wire.XS_DIRECTORY, "directory", path))

    def get_perms(self, path: str) -> list[str]:
        """Permissions as in ["n0", "r1"]: first the owner and what everybody may, then others (r, w, b, n)."""
        return _split(self._call(xs_wire.XS_GET_PERMS, "get_perms", path))

    def set_perms(self, path: str, perms: Iterable[str]) -> None:
        """Sets all permissions of a node, in the form of get_perms."""
        self._call(xs_wire.XS_SET_PERMS, "set_perms", path, *perms)


class Transaction(Access):
    """All or nothing: leaving the `with` block commits, or raises StoreError EAGAIN if somebody else got in between.

    An exception in the block drops what was done. `Store.transact` repeats by itself.
    """

    __slots__ = ("_id", "_store")

    def __init__(self, store: Store) -> None:
        self._store = store
        self._id = 0

    def __enter__(self) -> Transaction:
        answer = self._store.exchange(xs_wire.XS_TRANSACTION_START, b"\0", "transaction")
        try:
            self._id = parse_u32(answer.rstrip(b"\0").decode("ascii", "replace"), minimum=1)
        except ValueError as error:
            raise self._store.broken(errno.EPROTO, f"transaction number: {error}") from None
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        number, self._id = self._id, 0
        answer = b"T\0" if kind is None else b"F\0"
        try:
            self._store.exchange(xs_wire.XS_TRANSACTION_END, answer, "commit" if kind is None else "abort", number)
        except StoreError:
            if kind is None:
                raise  # else the exception of the block is the one to see

    def _call(self, kind: int, what: str, path: str, *strings: str, tail: bytes = b"") -> bytes:
        if self._id == 0:
            raise StoreError(errno.EINVAL, f"xenstore {what} {quote(path)}: the transaction has ended")
        return self._store.exchange(kind, _join(path, *strings) + tail, f"{what} {quote(path)}", self._id)


class Store(Access):
    """One connection. Not thread-safe: one Store a thread. Usable as a context manager, which closes it.

    `fileno()` is readable when the store has something to say, but an event may already have come along with an
    answer: drain `events()` or `next_event(0)` before sleeping on it.
    """

    __slots__ = ("_buffer", "_end", "_events", "_fd", "_next_id", "_timeout", "_tokens")

    def __init__(self, fd: int, timeout: float = 10.0) -> None:
        """Takes over `fd`. `timeout`: seconds a request may take."""
        os.set_blocking(fd, False)
        self._fd = fd
        self._end = "xenstore: the connection is closed"
        self._timeout = timeout
        self._next_id = 0
        self._buffer = bytearray()
        self._tokens: dict[str, dict[str, None]] = {}  # token -> the paths watched with it
        self._events: dict[Event, None] = {}

    @classmethod
    def open(cls, path: str | os.PathLike[str], timeout: float = 10.0) -> Store:
        """Connects to a xenstored socket, or opens the kernel's xenbus device. Raises StoreError."""
        try:
            if stat.S_ISCHR(Path(path).stat().st_mode):
                return cls(os.open(path, os.O_RDWR | os.O_CLOEXEC), timeout)
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connect(connection, path, timeout)
                return cls(connection.detach(), timeout)
        except OSError as error:
            number = error.errno or errno.ETIMEDOUT
            raise StoreError(number, f"no xenstore at {os.fspath(path)}: {os.strerror(number).lower()}") from None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()

    def close(self) -> None:
        """Ends the connection, its watches and transactions. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    @property
    def closed(self) -> bool:
        """By `close`, or because the store gave no answer or none that can be trusted."""
        return self._fd < 0

    def fileno(self) -> int:
        """Descriptor to poll for readability. Raises StoreError ENOTCONN when closed, which says how that came."""
        if self._fd < 0:
            raise StoreError(errno.ENOTCONN, self._end)
        return self._fd

    def get_domain_path(self, domid: int) -> str:
        """/local/domain/<domid>."""
        answer = self.exchange(xs_wire.XS_GET_DOMAIN_PATH, _join(str(domid)), f"get_domain_path {domid}")
        return answer.rstrip(b"\0").decode("utf-8", "replace")

    def is_domain_introduced(self, domid: int) -> bool:
        """Whether the domain is alive and known to the store. For dom0."""
        answer = self.exchange(xs_wire.XS_IS_DOMAIN_INTRODUCED, _join(str(domid)), f"is_domain_introduced {domid}")
        return answer == b"T\0"

    def watch(self, path: str, token: str) -> None:
        """Asks for an event (path, token) at every change of the node or anything below, and for one at once.

        "@introduceDomain" and "@releaseDomain" tell dom0 of domains that come and go.
        """
        paths = self._tokens.setdefault(token, {})
        known = path in paths
        paths[path] = None  # before the request, since its first event may overtake the answer
        try:
            self.exchange(xs_wire.XS_WATCH, _join(path, token), f"watch {quote(path)}")
        except BaseException:
            if not known:
                self._forget(path, token)
            raise

    def unwatch(self, path: str, token: str) -> None:
        """Ends a watch and drops its events."""
        self.exchange(xs_wire.XS_UNWATCH, _join(path, token), f"unwatch {quote(path)}")
        self._forget(path, token)

    def events(self) -> list[Event]:
        """The events that are there now, merged; never waits. Raises StoreError when the store is gone."""
        self._receive_available()
        events = list(self._events)
        self._events.clear()
        return events

    def next_event(self, timeout: float | None = None) -> Event | None:
        """The next event; None when none came within `timeout` seconds (None: for ever)."""
        deadline = None if timeout is None else time.monotonic() + timeout
        self._receive_available()
        while not self._events:
            if not self._wait(select.POLLIN, deadline):
                return None
            self._receive_available()
        event = next(iter(self._events))
        del self._events[event]
        return event

    def transaction(self) -> Transaction:
        """A transaction, for `with`; its commit may raise StoreError EAGAIN."""
        return Transaction(self)

    def transact(self, change: Callable[[Transaction], Result]) -> Result:
        """Runs `change` in a transaction, again after every conflict; returns what it returned.

        Raises what `change` raises, and StoreError EAGAIN after `MAX_ATTEMPTS` conflicts.
        """
        for attempt in range(MAX_ATTEMPTS):
            try:
                with self.transaction() as transaction:
                    return change(transaction)
            except StoreError as error:
                if error.errno != errno.EAGAIN or attempt == MAX_ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")

    def _call(self, kind: int, what: str, path: str, *strings: str, tail: bytes = b"") -> bytes:
        return self.exchange(kind, _join(path, *strings) + tail, f"{what} {quote(path)}")

    def exchange(self, kind: int, payload: bytes, what: str, transaction: int = 0) -> bytes:
        """One request and its answer; `what` names it in errors. Everything else here stands on this."""
        fd = self.fileno()
        if len(payload) > SENT_MAX:
            raise StoreError(errno.E2BIG, f"xenstore {what}: {len(payload)} bytes, the limit is {SENT_MAX}")
        self._next_id = (self._next_id + 1) & 0xFFFFFFFF
        deadline = time.monotonic() + self._timeout
        try:
            self._send(fd, HEADER.pack(kind, self._next_id, transaction, len(payload)) + payload, deadline)
            while True:
                message = self._parse()
                if message is None:
                    if not self._wait(select.POLLIN, deadline):
                        raise self._no_answer(what)
                    self._receive()
                    continue
                answer_kind, number, answer = message
                if answer_kind == xs_wire.XS_WATCH_EVENT:
                    self._queue(answer)
                    if time.monotonic() > deadline:
                        raise self._no_answer(what)
                    continue
                break
        except StoreError as error:
            raise self.broken(error.errno or errno.EIO, f"{error}") from None
        except OSError as error:
            raise self.broken(errno.ECONNRESET, f"xenstore {what}: the store is gone ({error.strerror})") from None
        if number != self._next_id or answer_kind not in (kind, xs_wire.XS_ERROR):
            raise self.broken(errno.EPROTO, f"xenstore {what}: answer of type {answer_kind} to request {number}")
        if answer_kind == xs_wire.XS_ERROR:
            name = answer.rstrip(b"\0").decode("ascii", "replace")
            code = xs_wire.ERROR_NUMBERS.get(name, errno.EIO)
            reason = f"{os.strerror(code).lower()} ({quote(name)[1:-1]}){xs_wire.hint(kind, code)}"
            raise StoreError(code, f"xenstore {what}: {reason}")
        return answer

    def _no_answer(self, what: str) -> StoreError:
        why = "does xenstored run, and has it since this domain began?"
        return StoreError(errno.ETIMEDOUT, f"xenstore {what}: no answer in {self._timeout:g} s: {why}")

    def broken(self, number: int, text: str) -> StoreError:
        """Closes the connection, whose state is unknown from here on; returns the error to raise."""
        self.close()
        self._end = text
        return StoreError(number, text)

    def _send(self, fd: int, message: bytes, deadline: float) -> None:
        view = memoryview(message)
        while view:
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:
                if not self._wait(select.POLLOUT, deadline):
                    raise StoreError(errno.ETIMEDOUT, "xenstore does not read its requests") from None

    def _wait(self, what: int, deadline: float | None) -> bool:
        """Sleeps until the descriptor is ready; False when the deadline passed."""
        poller = select.poll()
        poller.register(self.fileno(), what)
        while True:
            left = None if deadline is None else max(0.0, (deadline - time.monotonic()) * 1000)
            if poller.poll(left):
                return True
            if left == 0.0:
                return False

    def _receive(self) -> bool:
        """Reads once into the buffer; False when there was nothing. Raises StoreError at the end of the stream."""
        try:
            data = os.read(self._fd, READ_SIZE)
        except BlockingIOError:
            return False
        if not data:
            raise StoreError(errno.ECONNRESET, "xenstore: the store closed the connection")
        self._buffer += data
        return True

    def _receive_available(self) -> None:
        """Takes the events that wait in the socket, READ_SIZE bytes at most."""
        self.fileno()
        try:
            self._receive()
            while (message := self._parse()) is not None:
                kind, number, payload = message
                if kind != xs_wire.XS_WATCH_EVENT:
                    raise StoreError(errno.EPROTO, f"xenstore: answer {number} of type {kind} to no request")
                self._queue(payload)
        except StoreError as error:
            raise self.broken(error.errno or errno.EIO, str(error)) from None
        except OSError as error:
            raise self.broken(errno.ECONNRESET, f"xenstore: the store is gone ({error.strerror})") from None

    def _parse(self) -> tuple[int, int, bytes] | None:
        """The next whole message of the buffer: (type, req_id, payload)."""
        if len(self._buffer) < HEADER.size:
            return None
        kind, number, _, size = HEADER.unpack_from(self._buffer)
        if size > PAYLOAD_MAX:
            raise StoreError(errno.EPROTO, f"xenstore: message of {size} bytes, the limit is {PAYLOAD_MAX}")
        if len(self._buffer) < HEADER.size + size:
            return None
        payload = bytes(self._buffer[HEADER.size : HEADER.size + size])
        del self._buffer[: HEADER.size + size]
        return kind, number, payload

    def _queue(self, payload: bytes) -> None:
        strings = _split(payload)
        if len(strings) < 2 or strings[1] not in self._tokens:
            return  # of a watch that has ended
        path, token = strings[0], strings[1]
        if (path, token) in self._events or len(self._events) < MAX_EVENTS:
            self._events[path, token] = None
            return
        for watched in self._tokens[token]:
            self._events[watched, token] = None

    def _forget(self, path: str, token: str) -> None:
        paths = self._tokens.get(token, {})
        paths.pop(path, None)
        if not paths and self._tokens.pop(token, None) is not None:
            self._events = {event: None for event in self._events if event[1] != token}


def _join(*strings: str) -> bytes:
    parts = [string.encode() for string in strings]
    for part in parts:
        if b"\0" in part:
            raise StoreError(errno.EINVAL, f"xenstore: NUL byte in {quote(part.decode())}")
    return b"".join(part + b"\0" for part in parts)


def _split(payload: bytes) -> list[str]:
    text = payload.decode("utf-8", "replace")
    return text.removesuffix("\0").split("\0") if text else []
