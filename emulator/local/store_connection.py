"""One connection to the `xenstored` socket: the wire protocol, its transactions, and what waits to be sent."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from cpp_ring import xs_wire
from cpp_ring.xs_wire import HEADER, PAYLOAD_MAX
from emulator.local.errors import Refused
from emulator.local.transaction import Transaction
from emulator.local.tree import canonical, format_perms, parse_perms
from emulator.local.watches import Watch

if TYPE_CHECKING:
    from emulator.local.store import StoreServer

READ_SIZE: Final = HEADER.size + PAYLOAD_MAX
OUT_LIMIT: Final = 16384
"""Bytes made ready for sending; beyond, events wait merged and requests wait in the socket."""


class StoreConnection:
    """Memory is bounded: one message being received, OUT_LIMIT and one answer being sent, and the limits."""

    def __init__(self, connection: socket.socket, domid: int, server: StoreServer) -> None:
        self.domid = domid
        self.closed = False
        self._socket = connection
        self._server = server
        self._in = bytearray()
        self._out = bytearray()
        self._events: dict[tuple[str, str], None] = {}
        self._transactions: dict[int, Transaction] = {}
        self._next_transaction = 1

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def blocked(self) -> bool:
        """The client does not read what it asked for."""
        return bool(self._out)

    def readable(self) -> bool:
        """Takes requests; False when the connection is to be closed."""
        try:
            data = self._socket.recv(READ_SIZE - len(self._in))
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._in += data
        return bool(data) and self._serve()

    def flush(self) -> bool:
        """Sends what is ready and serves what was held back; False when the connection is to be closed."""
        while True:
            self._take_events()
            if not self._out:
                return True
            try:
                sent = self._socket.send(self._out, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return True
            except OSError:
                return False
            del self._out[:sent]
            if not self._out and not self._serve():
                return False

    def tell(self, path: str, watch: Watch) -> None:
        """An event. Equal ones are merged; past the limit the watch's own path stands for all below it."""
        if len(path) + len(watch.token) + 2 > PAYLOAD_MAX or (
            (path, watch.token) not in self._events and len(self._events) >= self._server.limits.pending_events
        ):
            path = watch.given
        self._events[path, watch.token] = None
        self._server.has_output(self)

    def close(self) -> None:
        self.closed = True
        self._server.watches.remove_all(self)
        self._drop_transactions()
        self._socket.close()

    def _take_events(self) -> None:
        while self._events and len(self._out) < OUT_LIMIT:
            path, token = event = next(iter(self._events))
            del self._events[event]
            self._reply(xs_wire.XS_WATCH_EVENT, 0, 0, f"{path}\0{token}\0".encode("latin-1"))

    def _serve(self) -> bool:
        """Answers the whole messages that are there, as long as the answers can go out."""
        taken = 0
        while len(self._in) - taken >= HEADER.size and len(self._out) < OUT_LIMIT:
            kind, number, transaction, size = HEADER.unpack_from(self._in, taken)
            if size > PAYLOAD_MAX:
                return False  # as xenstored does: where the next message starts is not known
            start = taken + HEADER.size
            if len(self._in) - start < size:
                break
            payload = bytes(self._in[start : start + size])
            taken = start + size
            try:
                answer = self._answer(kind, transaction, payload)
                if len(answer) > PAYLOAD_MAX:
                    raise Refused(errno.E2BIG)
            except Refused as refused:
                name = xs_wire.ERROR_NAMES.get(refused.errno, "EINVAL")
                self._reply(xs_wire.XS_ERROR, number, transaction, name.encode() + b"\0")
            else:
                self._reply(kind, number, transaction, answer)
        del self._in[:taken]
        if self._out:
            self._server.has_output(self)
        return True

    def _reply(self, kind: int, number: int, transaction: int, payload: bytes) -> None:
        self._out += HEADER.pack(kind, number, transaction, len(payload))
        self._out += payload

    def _answer(self, kind: int, transaction: int, payload: bytes) -> bytes:
        handler = HANDLERS.get(kind)
        if handler is None:
            raise Refused(errno.ENOSYS)
        return handler(self, transaction, payload)

    def _view(self, number: int) -> Transaction:
        if number == 0:
            return self._server.transaction(self.domid, whole=True)
        if number not in self._transactions:
            raise Refused(errno.ENOENT)
        return self._transactions[number]

    def _done(self, number: int, view: Transaction) -> bytes:
        """After a change: outside a transaction it is everybody's at once."""
        if number == 0:
            self._server.watches.fire(view.commit())
        return b"OK\0"

    def _path(self, given: str) -> str:
        return canonical(given, self.domid)

    def _drop_transactions(self) -> None:
        for _ in range(len(self._transactions)):
            self._server.transaction_ended(self.domid)
        self._transactions.clear()

    # ---- requests: (transaction, payload) -> payload of the answer ----

    def _read(self, number: int, payload: bytes) -> bytes:
        (path,) = _strings(payload, 1)
        return self._view(number).read(self._path(path))

    def _directory(self, number: int, payload: bytes) -> bytes:
        (path,) = _strings(payload, 1)
        return _joined(self._view(number).directory(self._path(path)))

    def _get_perms(self, number: int, payload: bytes) -> bytes:
        (path,) = _strings(payload, 1)
        return _joined(format_perms(self._view(number).perms(self._path(path))))

    def _write(self, number: int, payload: bytes) -> bytes:
        given, nul, value = payload.partition(b"\0")
        if not nul:
            raise Refused(errno.EINVAL)
        view = self._view(number)
        view.write(self._path(given.decode("latin-1")), value)
        return self._done(number, view)

    def _mkdir(self, number: int, payload: bytes) -> bytes:
        (path,) = _strings(payload, 1)
        view = self._view(number)
        view.mkdir(self._path(path))
        return self._done(number, view)

    def _rm(self, number: int, payload: bytes) -> bytes:
        (path,) = _strings(payload, 1)
        view = self._view(number)
        view.rm(self._path(path))
        return self._done(number, view)

    def _set_perms(self, number: int, payload: bytes) -> bytes:
        path, *perms = _strings(payload)
        view = self._view(number)
        view.set_perms(self._path(path), parse_perms(perms))
        return self._done(number, view)

    def _watch(self, _: int, payload: bytes) -> bytes:
        path, token = _strings(payload, 2)
        self._server.watches.add(self, path, token)
        return b"OK\0"

    def _unwatch(self, _: int, payload: bytes) -> bytes:
        path, token = _strings(payload, 2)
        self._server.watches.remove(self, path, token)
        return b"OK\0"

    def _reset_watches(self, _: int, payload: bytes) -> bytes:
        _strings(payload, 1)
        self._server.watches.remove_all(self)
        self._drop_transactions()
        self._events.clear()
        return b"OK\0"

    def _transaction_start(self, number: int, payload: bytes) -> bytes:
        _strings(payload, 1)
        if number != 0:
            raise Refused(errno.EBUSY)
        view = self._server.start_transaction(self.domid)
        while self._next_transaction in self._transactions or self._next_transaction == 0:
            self._next_transaction = (self._next_transaction + 1) & 0xFFFFFFFF
        number, self._next_transaction = self._next_transaction, (self._next_transaction + 1) & 0xFFFFFFFF
        self._transactions[number] = view
        return b"%d\0" % number

    def _transaction_end(self, number: int, payload: bytes) -> bytes:
        (commit,) = _strings(payload, 1)
        if commit not in ("T", "F"):
            raise Refused(errno.EINVAL)
        view = self._transactions.pop(number, None)
        if view is None:
            raise Refused(errno.ENOENT)
        self._server.transaction_ended(self.domid)
        if commit == "T":
            self._server.watches.fire(view.commit())
        return b"OK\0"

    def _get_domain_path(self, _: int, payload: bytes) -> bytes:
        return b"/local/domain/%d\0" % _domid(payload)

    def _is_domain_introduced(self, _: int, payload: bytes) -> bytes:
        if self.domid != 0:
            raise Refused(errno.EACCES)
        return b"T\0" if self._server.has_domain(_domid(payload)) else b"F\0"


HANDLERS: Final[dict[int, Callable[[StoreConnection, int, bytes], bytes]]] = {
    xs_wire.XS_DIRECTORY: StoreConnection._directory,
    xs_wire.XS_READ: StoreConnection._read,
    xs_wire.XS_GET_PERMS: StoreConnection._get_perms,
    xs_wire.XS_WATCH: StoreConnection._watch,
    xs_wire.XS_UNWATCH: StoreConnection._unwatch,
    xs_wire.XS_TRANSACTION_START: StoreConnection._transaction_start,
    xs_wire.XS_TRANSACTION_END: StoreConnection._transaction_end,
    xs_wire.XS_GET_DOMAIN_PATH: StoreConnection._get_domain_path,
    xs_wire.XS_WRITE: StoreConnection._write,
    xs_wire.XS_MKDIR: StoreConnection._mkdir,
    xs_wire.XS_RM: StoreConnection._rm,
    xs_wire.XS_SET_PERMS: StoreConnection._set_perms,
    xs_wire.XS_IS_DOMAIN_INTRODUCED: StoreConnection._is_domain_introduced,
    xs_wire.XS_RESET_WATCHES: StoreConnection._reset_watches,
}


def _strings(payload: bytes, count: int | None = None) -> list[str]:
    """The payload as `count` NUL-terminated strings; latin-1: any byte is a character. Raises Refused EINVAL."""
    if not payload.endswith(b"\0"):
        raise Refused(errno.EINVAL)
    strings = payload[:-1].decode("latin-1").split("\0")
    if count is not None and len(strings) != count:
        raise Refused(errno.EINVAL)
    return strings


def _joined(strings: list[str]) -> bytes:
    return "".join(string + "\0" for string in strings).encode("latin-1")


def _domid(payload: bytes) -> int:
    (text,) = _strings(payload, 1)
    if not (0 < len(text) <= 5 and text.isascii() and text.isdigit()):
        raise Refused(errno.EINVAL)
    return int(text)
