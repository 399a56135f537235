"""The bus: one device connected through two granted pages, event channels and the store (docs/protocol.md)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from cpp_ring import PROTOCOL_VERSION, ChannelError, DriverQueue, Frontend, PeerDead
from cpp_ring.store import StoreError
from guest.arena import Arena
from guest.errors import ConnectionFailed, DeviceGone
from guest.hypervisor import Domain
from guest.xenbus import MAX_QUEUES, State, XenbusDevice

ATTEMPTS: Final = 3
"""Connections begun before a backend that closes each of them is believed."""

PLACEHOLDER_SIZE: Final = 2
"""A queue's event channel is published before its size is known; `DriverQueue.setup` follows."""


class Transport:
    """The frontend's end of one device. `connect` may be called again and again; each time everything is fresh, but
    for the arena, whose pages keep their references so that requests can be repeated as they are.
    """

    def __init__(self, domain: Domain, number: int, *, arena_pages: int = 0, timeout: float = 2.0) -> None:
        """`timeout`: seconds an exchange may take. Raises NoSuchDevice, StoreError, HostError."""
        self.hypervisor = domain.hypervisor
        self.timeout = timeout
        self.store = domain.open_store()
        try:
            self.xenbus = XenbusDevice(self.store, number)
            self.xenbus.watch()
            backend = self.xenbus.backend_domid
            self.arena = Arena(self.hypervisor, backend, arena_pages) if arena_pages else None
        except BaseException:
            self.store.close()
            raise
        self.queues: list[DriverQueue] = []
        self.exchanges = 0
        """Made so far, on all connections."""
        self._record: list[tuple[int, bytes]] | None = None
        self._frontend: Frontend | None = None
        self._lost = True
        self._closed = False

    @property
    def frontend(self) -> Frontend:
        """The config channel. Raises ConnectionFailed when there is none."""
        if self._frontend is None:
            raise ConnectionFailed(f"device {self.xenbus.number} is not connected")
        return self._frontend

    @property
    def connected(self) -> bool:
        return self._frontend is not None

    def connect(self, timeout: float = 10.0) -> None:
        """Finds the backend in InitWait, offers it everything, and waits until it is Connected.

        Raises ConnectionFailed (with the backend's reason), DeviceGone, StoreError, HostError, ChannelError.
        """
        if self._closed:
            raise DeviceGone(f"device {self.xenbus.number} was closed")
        deadline = time.monotonic() + timeout
        try:
            for _ in range(ATTEMPTS):
                self._drop()
                self.xenbus.set_state(State.INITIALISING)
                self._await_init_wait(deadline)
                self._offer()
                if self._await_connected(deadline):
                    return
            raise ConnectionFailed(f"device {self.xenbus.number}: its backend closed it: {self.xenbus.error()}")
        except DeviceGone:
            self.close()
            raise
        except BaseException:
            self._drop()
            raise

    def exchange(self, msg_id: int, payload: bytes = b"") -> bytes:
        """One message and its answer. Raises ChannelTimeout, PeerDead, ChannelError."""
        self.exchanges += 1
        if self._record is not None:
            self._record.append((msg_id, payload))
        return self.frontend.exchange(msg_id, payload, self.timeout)

    def recorded(self, action: Callable[[], None]) -> list[tuple[int, bytes]]:
        """Message ids and payloads of the exchanges that `action` makes."""
        record = self._record = []
        try:
            action()
        finally:
            self._record = None
        return record

    def lost(self) -> bool:
        """Has the backend died, restarted or begun to close the device? Only `connect` helps then."""
        if self._lost or self._frontend is None or not self._frontend.backend_alive:
            return True
        if self.store.events():
            self._lost = self.xenbus.backend_state() != State.CONNECTED
        return self._lost

    def close(self) -> None:
        """Leaves the device: our states 5 and 6, the pages withdrawn in between. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._report(State.CLOSING)
        self._drop()
        if self.arena is not None:
            self.arena.close()
        self._report(State.CLOSED)
        self.store.close()

    def _drop(self) -> None:
        self._lost = True
        if self._frontend is not None:
            self._frontend.close()
            self._frontend = None
        for queue in self.queues:
            queue.close()
        self.queues = []

    def _report(self, state: State) -> None:
        try:
            self.xenbus.set_state(state)
        except StoreError:
            return  # the store is gone, and with it whoever could read the state

    def _await_init_wait(self, deadline: float) -> None:
        while True:
            state = self.xenbus.backend_state()
            if state is None or not self.xenbus.online():
                raise DeviceGone(f"device {self.xenbus.number} was unplugged")
            if state == State.INIT_WAIT:
                return
            if not self.xenbus.wait(deadline):
                if state in (State.CLOSING, State.CLOSED):
                    why = f"its backend closed it: {self.xenbus.error()}"
                else:
                    why = f"no backend: its state stays {state.name.lower()}; does an emulator run for this domain?"
                raise ConnectionFailed(f"device {self.xenbus.number}: {why}")

    def _offer(self) -> None:
        offered = self.xenbus.versions()
        if PROTOCOL_VERSION not in offered:
            raise ConnectionFailed(
                f"device {self.xenbus.number}: its backend speaks versions {offered}, this driver {PROTOCOL_VERSION}"
            )
        backend = self.xenbus.backend_domid
        self._frontend = Frontend(self.hypervisor, backend)
        for index in range(min(self.xenbus.max_queues(), MAX_QUEUES)):
            self.queues.append(DriverQueue(self.hypervisor, backend, index=index, size=PLACEHOLDER_SIZE, features=0))
        nodes = {
            "version": PROTOCOL_VERSION,
            "fe-to-be-ref": self._frontend.fe_to_be_ref,
            "be-to-fe-ref": self._frontend.be_to_fe_ref,
            "event-channel": self._frontend.event_channel,
        }
        nodes |= {f"queue-{queue.index}/event-channel": queue.event_channel for queue in self.queues}
        if self.arena is not None:
            nodes |= {"arena-ref": self.arena.first_ref, "arena-pages": self.arena.pages}
        self.xenbus.publish(nodes, State.INITIALISED)

    def _await_connected(self, deadline: float) -> bool:
        """False: the backend closed the device, or died as soon as it was connected."""
        while (state := self.xenbus.backend_state()) != State.CONNECTED:
            if state is None or not self.xenbus.online():
                raise DeviceGone(f"device {self.xenbus.number} was unplugged")
            if state in (State.CLOSING, State.CLOSED):
                return False
            if not self.xenbus.wait(deadline):
                raise ConnectionFailed(f"device {self.xenbus.number}: its backend does not connect")
        try:
            self.frontend.check_header()
        except PeerDead:
            return False
        except ChannelError as error:
            raise ConnectionFailed(f"device {self.xenbus.number}: header of the backend: {error}") from None
        self.xenbus.set_state(State.CONNECTED)
        self._lost = False
        return True
