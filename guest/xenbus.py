"""The store's side of a device: its nodes and the frontend's half of the life cycle (docs/protocol.md section 4).

What the backend wrote is untrusted: every value is parsed with bounds, and one that does not parse raises
`ConnectionFailed`. What the toolstack wrote into the frontend's directory raises `NoSuchDevice` instead.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cpp_ring.store import Store, StoreError, Transaction
from cpp_ring.store_values import parse_u32, parse_u32_list, quote
from cpp_ring.xenbus_states import State as State
from guest.errors import ConnectionFailed, NoSuchDevice

DEVICES: Final = "device/virtio-msg"
"""Directory of this domain's devices, relative to the domain."""

MAX_QUEUES: Final = 129
"""Virtqueues this driver uses of one device at most, however many the backend claims: 64 pairs and a control queue."""

MAX_DEVICES: Final = 1024
MAX_DOMID: Final = 0x7FFF


class XenbusDevice:
    """The nodes of device `number`. Raises NoSuchDevice, StoreError."""

    def __init__(self, store: Store, number: int) -> None:
        self.store = store
        self.number = number
        self.path = f"{DEVICES}/{number}"
        backend = store.read_optional(f"{self.path}/backend")
        if backend is None:
            raise NoSuchDevice(f"no device {number}: `list` shows the devices of this domain")
        try:
            self.backend_domid = parse_u32(store.read(f"{self.path}/backend-id"), MAX_DOMID)
        except ValueError as error:
            raise NoSuchDevice(f"device {number}: backend-id: {error}") from None
        if not backend.startswith("/") or len(backend) > 256:
            raise NoSuchDevice(f"device {number}: backend {quote(backend)} is not a path")
        self.backend_path = backend

    def watch(self) -> None:
        """Makes `wait` and the store's descriptor tell of changes."""
        for node in ("state", "online"):
            self.store.watch(f"{self.backend_path}/{node}", self.path)

    def backend_state(self) -> State | None:
        """None: the backend's directory is gone."""
        number = self._backend_number("state", State.RECONFIGURED)
        return None if number is None else State(number)

    def online(self) -> bool:
        """False: the toolstack takes the device away."""
        return self._backend_number("online", 1, default=1) == 1

    def versions(self) -> list[int]:
        text = self._backend_node("versions") or ""
        try:
            return parse_u32_list(text)
        except ValueError as error:
            raise ConnectionFailed(f"device {self.number}: versions: {error}") from None

    def device_id(self) -> int | None:
        """The virtio device id, known before connecting once the backend is in InitWait."""
        return self._backend_number("device-id", 0xFFFFFFFF)

    def max_queues(self) -> int:
        return self._backend_number("max-queues", 0xFFFFFFFF, default=0) or 0

    def error(self) -> str:
        """Why the backend closed the device: its `error` node, made fit for a person."""
        text = self._backend_node("error")
        return quote(text)[1:-1] if text else "the backend gives no reason"

    def set_state(self, state: State) -> None:
        """Writes our state, unless the toolstack removed the device: a write would bring a part of it back."""
        self.store.transact(lambda transaction: self._write(transaction, {}, state))

    def publish(self, nodes: Mapping[str, int], state: State) -> None:
        """Replaces all of our nodes and sets our state, in one transaction."""

        def change(transaction: Transaction) -> None:
            # Those of the same name are written anyway: each request costs a way to xenstored and back.
            kept = {"backend", "backend-id", "state", *(name.partition("/")[0] for name in nodes)}
            for name in set(transaction.directory(self.path)) - kept:
                transaction.rm(f"{self.path}/{name}")
            self._write(transaction, nodes, state)

        self.store.transact(change)

    def wait(self, deadline: float) -> bool:
        """Sleeps until the backend's nodes may have changed; False once time.monotonic() is past `deadline`."""
        left = deadline - time.monotonic()
        if left <= 0 or self.store.next_event(left) is None:
            return False
        self.store.events()
        return True

    def _write(self, transaction: Transaction, nodes: Mapping[str, int], state: State) -> None:
        if transaction.read_optional(f"{self.path}/backend") is None:
            return
        for name, value in nodes.items():
            transaction.write(f"{self.path}/{name}", str(value))
        transaction.write(f"{self.path}/state", str(int(state)))

    def _backend_node(self, name: str) -> str | None:
        try:
            return self.store.read_optional(f"{self.backend_path}/{name}")
        except StoreError as error:
            # What is not there looks like this too, once the directory around it is gone.
            if error.errno == errno.EACCES:
                return None
            raise

    def _backend_number(self, name: str, maximum: int, default: int | None = None) -> int | None:
        text = self._backend_node(name)
        if text is None:
            return default
        try:
            return parse_u32(text, maximum)
        except ValueError as error:
            raise ConnectionFailed(f"device {self.number}: {name} of the backend: {error}") from None


@dataclass(frozen=True, slots=True)
class Entry:
    """A device as the store shows it. None: not known, or nonsense."""

    number: int
    backend_domid: int | None
    device_id: int | None
    backend_state: State | None


def list_devices(store: Store) -> list[Entry]:
    """The devices of this domain by number."""
    try:
        names = store.directory(DEVICES)
    except StoreError as error:
        if error.errno == errno.ENOENT:
            return []
        raise
    numbers = sorted(int(name) for name in names if name.isascii() and name.isdigit() and len(name) < 6)
    return [_entry(store, number) for number in numbers[:MAX_DEVICES]]


def _entry(store: Store, number: int) -> Entry:
    try:
        device = XenbusDevice(store, number)
    except NoSuchDevice:
        return Entry(number, None, None, None)
    try:
        return Entry(number, device.backend_domid, device.device_id(), device.backend_state())
    except ConnectionFailed:
        return Entry(number, device.backend_domid, None, None)
