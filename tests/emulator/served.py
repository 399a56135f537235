"""The devices of a domain, served in a thread of the test's own process, so that a test can be their store or clock."""

from __future__ import annotations

import math
import socket
import threading

from cpp_ring import LocalHypervisor
from cpp_ring.store import Store
from emulator.loop import EventLoop
from emulator.poll import Polling
from emulator.xenbus import Xenbus
from tests.emulator.machines import PATIENCE, Machine


def connection(machine: Machine) -> int:
    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    end.connect(str(machine.directory / "dom0" / "xenstored"))
    return end.detach()


class Served:
    """The devices of the machine's domain, as `store` has them, until `stop`."""

    def __init__(self, machine: Machine, store: Store, loop: EventLoop | None = None) -> None:
        self._store = store
        self._loop = loop or EventLoop()
        hypervisor = LocalHypervisor(str(machine.directory), 0)
        self._xenbus = Xenbus(
            self._loop, store, hypervisor, backend=0, frontend=machine.domid, polling=Polling.fixed(math.inf),
            domain_gone=lambda: None, not_built=lambda devid, reason: None,
        )  # fmt: skip
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._xenbus.start()
        self._loop.run()

    def stop(self) -> None:
        self._loop.post(lambda: self._xenbus.drain(frozenset(), self._loop.stop))
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "it does not end"
        self._loop.close()
        self._store.close()
