"""All devices of one domain: found in the store, looked at when the store says that they changed."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from cpp_ring.store import Store, StoreError
from cpp_ring.store_values import parse_u32
from emulator.backend_nodes import remove_domain
from emulator.loop import EventLoop
from emulator.machine import is_there
from emulator.phase import Phase
from emulator.poll import Polling
from emulator.store_paths import backends_dir, children, frontends_dir
from emulator.xenbus_device import RETRY_SECONDS, STORE_GONE, XenbusDevice

if TYPE_CHECKING:
    from cpp_ring import Hypervisor

LAST_DEVID: Final = 65535
LOOK_SECONDS: Final = 0.005
"""A device is looked at once in this time, however often its frontend writes (XSA-349)."""

DOMAIN_SECONDS: Final = 5.0
"""Between looks of a driver domain at whether its guest is still there."""

TOOLSTACK_NODES: Final = ("online", "spec", "update", "frontend-id")
DOMAIN_EVENTS: Final = "@releaseDomain"

log = logging.getLogger("virtio-dm")


class Xenbus:
    """The backends of `frontend`'s devices. `domain_gone` is called when the domain has ended;
    `not_built` with the devid and the reason when a device cannot be made.
    """

    def __init__(
        self,
        loop: EventLoop,
        store: Store,
        hypervisor: Hypervisor,
        *,
        backend: int,
        frontend: int,
        polling: Polling,
        domain_gone: Callable[[], None],
        not_built: Callable[[int, str], None],
    ) -> None:
        self._loop = loop
        self._store = store
        self._hypervisor = hypervisor
        self._backend = backend
        self._frontend = frontend
        self._polling = polling
        self._domain_gone = domain_gone
        self._not_built = not_built
        self._backends = backends_dir(backend, frontend)
        self._frontends = frontends_dir(frontend)
        self._devices: dict[int, XenbusDevice] = {}
        self._looked: dict[int, float] = {}  # devid -> time of the last look
        self._due: set[int] = set()  # devids whose next look has a timer
        self._drained: Callable[[], None] | None = None

    def start(self) -> None:
        """Finds the devices that are there and follows the store from here on. Raises StoreError."""
        self._store.watch(self._frontends, "frontend")
        self._store.watch(self._backends, "backend")
        self._store.watch(DOMAIN_EVENTS, "domain")
        self._loop.watch(self._store.fileno(), lambda: None)  # `take_events` comes before each sleep
        self._loop.before_sleep(self.take_events)
        if self._backend != 0:
            self._look_at_all()

    def _look_at_all(self) -> None:
        """Now and then: a driver domain is not told of domains that end, only of directories that vanish."""
        for devid in list(self._devices):
            self._look(devid)
        self._loop.call_later(DOMAIN_SECONDS, self._look_at_all)

    @property
    def devices(self) -> list[XenbusDevice]:
        return list(self._devices.values())

    def drain(self, transient: frozenset[int], drained: Callable[[], None]) -> None:
        """Ends all devices: those of `transient` for good, the others until the next emulator; then calls `drained`."""
        self._end_all(lambda device: device.unplug if device.devid in transient else device.suspend, drained)

    def forget(self, drained: Callable[[], None]) -> None:
        """The domain is gone: ends all devices, removes what the store has of them, then calls `drained`."""

        def last() -> None:
            try:
                with self._guarded():
                    remove_domain(self._store, self._backend, self._frontend)
            finally:
                drained()

        self._end_all(lambda device: device.forget, last)

    def _end_all(self, way: Callable[[XenbusDevice], Callable[[], None]], drained: Callable[[], None]) -> None:
        self._drained = drained
        for device in self.devices:
            device.handle(way(device))
        if not self._devices:
            drained()

    def take_events(self) -> bool:
        """Does what the store asks for; whether there was anything. Raises StoreError when the store is gone."""
        events = self._store.events()
        changed: set[int] = set()
        for path, token in events:
            with self._guarded():
                changed |= self._changed_devices(path, token)
        for devid in changed:
            self._look(devid)
        return bool(events)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Only the loss of the store leaves the context as an exception."""
        try:
            yield
        except StoreError as error:
            if error.errno in STORE_GONE:
                raise
            log.error("the store refused: %s", error)
        except Exception:
            log.exception("cannot serve a device")

    def _changed_devices(self, path: str, token: str) -> set[int]:
        if token == "domain":
            if not is_there(self._store, self._frontend):
                self._domain_gone()
            return set()
        root = self._backends if token == "backend" else self._frontends
        if path == root:
            return self._discover() if token == "backend" else self._frontends_changed(set(self._devices))
        name, _, node = path.removeprefix(root + "/").partition("/")
        try:
            devid = parse_u32(name, LAST_DEVID)
        except ValueError:
            return set()
        if token == "backend":
            return {devid} if node in ("", *TOOLSTACK_NODES) else set()
        return self._frontends_changed({devid} & set(self._devices)) if node in ("", "state") else set()

    def _discover(self) -> set[int]:
        found = set(self._devices)
        for name in children(self._store, self._backends):
            try:
                found.add(parse_u32(name, LAST_DEVID))
            except ValueError:
                log.warning("%s/%s is no device", self._backends, name)
        return found

    def _frontends_changed(self, devids: set[int]) -> set[int]:
        for devid in devids:
            self._devices[devid].frontend_changed()
        return devids

    def _look(self, devid: int) -> None:
        if devid in self._due:
            return
        wait = self._looked.get(devid, 0.0) + LOOK_SECONDS - time.monotonic()
        if wait > 0:
            self._due.add(devid)
            self._loop.call_later(wait, lambda: self._look_late(devid))
            return
        device = self._devices.get(devid)
        if device:
            self._looked[devid] = time.monotonic()
            device.handle(device.step)
        elif self._drained is None:
            added = False
            with self._guarded():
                self._add(devid)
                added = True
            if not added:
                self._due.add(devid)
                self._loop.call_later(RETRY_SECONDS, lambda: self._look_late(devid))

    def _look_late(self, devid: int) -> None:
        self._due.discard(devid)
        self._look(devid)

    def _add(self, devid: int) -> None:
        if self._store.read_optional(f"{self._backends}/{devid}/frontend-id") is None:
            return
        self._devices[devid] = XenbusDevice(
            self._loop,
            self._store,
            self._hypervisor,
            backend=self._backend,
            frontend=self._frontend,
            devid=devid,
            polling=self._polling,
            gone=self._gone,
            not_built=self._not_built,
        )

    def _gone(self, device: XenbusDevice) -> None:
        assert device.phase is Phase.GONE
        del self._devices[device.devid]
        self._looked.pop(device.devid, None)
        if self._drained is None:
            self._look(device.devid)  # it may have been attached again meanwhile
            if device.orphaned and not self._devices:
                self._domain_gone()
        elif not self._devices:
            self._drained()
