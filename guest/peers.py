"""What the agent does for the bench's comparisons: its half of a bare page, a bare event channel, a vchan.

The other half is a process of the backend's domain (emulator/bench/xen_peers.py). All waiting and timing is the
engine's.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cpp_ring import EventChannels, LatencyRecorder, PingPong, SharedPages
from guest.errors import DriverError, Unsupported
from guest.hypervisor import Domain
from guest.measuring import recorded

if TYPE_CHECKING:
    from cpp_ring._vchan import Vchan

Answer = dict[str, Any]

PATIENCE: Final = 10.0
"""Seconds for the other half to begin."""
GUEST_TYPE: Final = Path("/sys/hypervisor/guest_type")
NO_VCHAN: Final = "this build has no libxenvchan: install libxen-dev and pkg-config, then build again"


class Peers:
    """Operations of the agent that need no device."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self._page: tuple[SharedPages, PingPong] | None = None
        self._events: tuple[EventChannels, int] | None = None
        self._vchan: Vchan | None = None

    def op_about(self) -> Answer:
        """Where this is: number and kind of the domain (pv, pvh, hvm; null: not known), and its kernel."""
        kind = None
        with suppress(OSError):
            kind = GUEST_TYPE.read_text().strip().lower()
        return {"domid": self.domain.hypervisor.domid, "guest": kind, "kernel": platform.release()}

    def op_peer_page(self, backend: int) -> Answer:
        """Grants a page to domain `backend` for a bare ping-pong."""
        pages = self.domain.hypervisor.share(backend, 1)
        self._page = pages, PingPong(pages.memory, PATIENCE)
        return {"ref": pages.first_ref}

    def op_peer_events(self, backend: int) -> Answer:
        """Offers an event channel to domain `backend`."""
        channels = EventChannels(self.domain.hypervisor)
        port = channels.alloc_unbound(backend)
        self._events = channels, port
        return {"port": port}

    def op_peer_vchan(self, backend: int, path: str) -> Answer:
        """Offers a vchan to domain `backend` at `path` of this domain's part of the store."""
        try:
            from cpp_ring._vchan import Vchan
        except ImportError as error:
            raise Unsupported(NO_VCHAN) from error
        self._vchan = Vchan.offer(backend, path)
        return {}

    def op_peer_close(self) -> Answer:
        """Lets go of all of them."""
        self._page = self._events = self._vchan = None
        return {}

    def op_measure_page(self, count: int, warm_up: int = 0) -> Answer:
        """`warm_up` round trips that do not count, then `count`; so do the others."""
        if self._page is None:
            raise DriverError("there is no page: peer_page comes first")
        words = self._page[1]
        return _measured(lambda n, recorder: words.measure(n, recorder), count, warm_up)

    def op_measure_events(self, count: int, warm_up: int = 0) -> Answer:
        if self._events is None:
            raise DriverError("there is no event channel: peer_events comes first")
        channels, port = self._events
        while (pending := channels.pending()) is not None:  # the other half's coming may have raised one
            channels.unmask(pending)
        return _measured(lambda n, recorder: channels.measure(port, n, recorder, PATIENCE), count, warm_up)

    def op_measure_vchan(self, count: int, warm_up: int = 0, asleep: bool = False) -> Answer:
        if self._vchan is None:
            raise DriverError("there is no vchan: peer_vchan comes first")
        vchan = self._vchan
        return _measured(lambda n, recorder: vchan.measure(n, asleep, recorder, PATIENCE), count, warm_up)


def _measured(measure: Callable[[int, LatencyRecorder], bool], count: int, warm_up: int) -> Answer:
    recorder = LatencyRecorder()
    if not (measure(warm_up, LatencyRecorder()) and measure(count, recorder)):
        raise DriverError(f"the other half did not answer for {PATIENCE:g} s: is the machine overloaded?")
    return recorded(recorder)
