"""What a config access on Xen is measured against: a bare granted page, bare event channels, libxenvchan.

Each has a server process in this domain and its client in the guest, which is told by way of `guest`, measures, and
sends what it recorded.
"""

from __future__ import annotations

import contextlib
import select
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, Final

from cpp_ring import EventChannels, Hypervisor, LatencyRecorder, PingPong
from emulator.bench.errors import ProcessFailed
from emulator.bench.peers import WARM_UP, Peer, serving
from emulator.guest_process import GuestFailed, GuestProcess
from emulator.machine import Machine

PATIENCE: Final = 10.0
"""Seconds the server waits for the guest to begin: the command comes over a network or worse."""
FIRST_EVENT: Final = 0.2
"""Seconds for the event that a binding itself may raise."""
VCHAN_PATH: Final = "data/virtio-dm-bench"
"""Below the guest's home in the store, where a guest may write."""

Echo = Callable[[int, bool], bool]
"""Serves a number of round trips, asleep in between or not; False when the guest was silent."""


class XenPeers:
    """The peers of one guest, whose servers run on `cpu`."""

    def __init__(self, machine: Machine, domid: int, guest: GuestProcess, cpu: int) -> None:
        self._machine = machine
        self._domid = domid
        self._guest = guest
        self._cpu = cpu

    @contextlib.contextmanager
    def page(self) -> Iterator[Peer]:
        """`limit.cache-line`: two words on one page that the guest grants, both sides spinning."""
        ref: int = self._guest.request("peer_page", backend=self._machine.backend)["ref"]

        def join(hypervisor: Hypervisor) -> Echo:
            words = PingPong(hypervisor.map(self._domid, ref, 1).memory, PATIENCE)
            return lambda count, _asleep: words.serve(count)

        with self._served(join) as control:
            yield _GuestPeer(self._guest, control, "measure_page", WARM_UP)

    @contextlib.contextmanager
    def events(self) -> Iterator[Peer]:
        """`peer.evtchn`: an event and another one back, both sides asleep until it comes."""
        port: int = self._guest.request("peer_events", backend=self._machine.backend)["port"]

        def join(hypervisor: Hypervisor) -> Echo:
            channels = EventChannels(hypervisor)
            ours = channels.bind_interdomain(self._domid, port)
            select.select([channels], [], [], FIRST_EVENT)
            while (pending := channels.pending()) is not None:
                channels.unmask(pending)
            return lambda count, _asleep: channels.echo(ours, count, PATIENCE)

        with self._served(join) as control:
            yield _GuestPeer(self._guest, control, "measure_events", 10)

    @contextlib.contextmanager
    def vchan(self) -> Iterator[tuple[Peer, Peer] | None]:
        """`peer.xenvchan.awake` and `.asleep`: both sides spin, or both wait in the library. None: it is not there."""
        try:
            from cpp_ring._vchan import Vchan

            self._guest.request("peer_vchan", backend=self._machine.backend, path=VCHAN_PATH)
        except (ImportError, GuestFailed):
            yield None
            return

        def join(_: Hypervisor) -> Echo:
            vchan = Vchan.join(self._domid, f"/local/domain/{self._domid}/{VCHAN_PATH}")
            return lambda count, asleep: vchan.echo(count, asleep, PATIENCE)

        with self._served(join) as control:
            awake = _GuestPeer(self._guest, control, "measure_vchan", 10, asleep=False)
            yield awake, _GuestPeer(self._guest, control, "measure_vchan", 10, asleep=True)

    @contextlib.contextmanager
    def _served(self, join: Callable[[Hypervisor], Echo]) -> Iterator[Connection]:
        def serve(control: Connection) -> None:
            try:
                # Opened here: handles of Xen's libraries are of no use after a fork.
                echo = join(self._machine.open_hypervisor())
            except Exception as error:
                control.send(str(error))
                return
            control.send(None)
            while True:
                count, asleep = control.recv()
                echo(count, asleep)  # a guest that was silent says so itself

        with serving(self._cpu, serve) as control:
            if (said := control.recv()) is not None:
                raise ProcessFailed(said)
            yield control


class _GuestPeer:
    """`op` of the guest's agent, with the server told how many round trips are to come."""

    def __init__(self, guest: GuestProcess, control: Connection, op: str, warm_up: int, **how: Any) -> None:
        self._guest = guest
        self._control = control
        self._op = op
        self._warm_up = warm_up
        self._how = how

    def measure(self, count: int, recorder: LatencyRecorder) -> None:
        self._control.send((count + self._warm_up, self._how.get("asleep", False)))
        recorder.merge(self._guest.measure(self._op, count=count, warm_up=self._warm_up, **self._how))
