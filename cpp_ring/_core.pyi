"""The engine: hypervisor interface, config ring, virtqueues, latency recorder (C++, docs/protocol.md)."""

from collections.abc import Callable, Sequence
from mmap import mmap
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

Batch = list[tuple[int, bytes, list[memoryview]]]
"""Requests of one queue: (head, private copy of the readable part, writable views of guest memory)."""

PROTOCOL_VERSION: Final[int]
MAX_MESSAGE: Final[int]
TRANSPORT_FEATURES: Final[int]
"""Mask of the feature bits the engine itself implements (28, 29, 32, 33, 35, 40)."""

class HostError(OSError):
    """The host or the hypervisor refused; `errno` says why."""

class ChannelError(Exception):
    """The other side of a channel broke the protocol. args: (text,)."""

    name: str
    """Name of the error code, e.g. "bad_seq"."""
    detail: int

class ChannelTimeout(ChannelError):
    """No answer before the deadline; the device is broken until the late answer comes or a reconnect."""

class PeerDead(ChannelError):
    """The other side's live byte is 0."""

class QueueFull(Exception):
    """The ring has no room for the buffers."""

def error_name(code: int) -> str:
    """Name of an error code of the be-to-fe header; "unknown" for one that has none."""

# ---- hypervisor ----

class Hypervisor:
    """A connection to a hypervisor as one domain. Base class; not constructed.

    `map_budget` of the classes below: pages of other domains that all Backends on it together have mapped at a time.
    """

    @property
    def domid(self) -> int: ...
    def share(self, domid: int, pages: int, writable: bool = True) -> SharedPages:
        """Grants `pages` zeroed pages to `domid` under consecutive references. Raises HostError."""
    def map(self, domid: int, first_ref: int, count: int, writable: bool = True) -> MappedPages:
        """Maps `count` consecutive references of `domid`, all or nothing. Raises HostError."""

class LocalHypervisor(Hypervisor):
    """The local hypervisor of a machine directory (docs/local.md), as domain `domid`. Raises HostError."""

    def __init__(self, directory: str, domid: int, map_budget: int = 65536) -> None: ...

class XenHypervisor(Hypervisor):
    """Xen, seen from the domain this process runs in, whose number is `domid`. Only in builds with Xen's libraries.

    What of /dev/xen cannot be opened is a HostError of the call that needs it.
    """

    def __init__(self, domid: int, map_budget: int = 65536) -> None: ...

class SharedPages:
    """Pages of this domain granted to another; withdrawn by close() or when collected."""

    @property
    def first_ref(self) -> int: ...
    @property
    def pages(self) -> int: ...
    @property
    def memory(self) -> memoryview:
        """Writable bytes, length pages * 4096. Keeps the pages alive."""
    def address(self, offset: int = 0) -> int:
        """Grant-DMA address of a byte of the pages."""
    def close(self) -> None:
        """Withdraws the grant; the pages stay while a view of them does. Idempotent."""

class MappedPages:
    """Pages of another domain; unmapped by close() or when collected, and no view is left."""

    def close(self) -> None: ...
    @property
    def memory(self) -> memoryview: ...

class EventChannels:
    """Event channels of one thread."""

    def __init__(self, hypervisor: Hypervisor) -> None: ...
    def fileno(self) -> int: ...
    def alloc_unbound(self, remote: int) -> int: ...
    def bind_interdomain(self, remote: int, remote_port: int) -> int: ...
    def unbind(self, port: int) -> None: ...
    def notify(self, port: int) -> None: ...
    def pending(self) -> int | None:
        """The next pending port, now cleared and masked; None when there is none. Never blocks."""
    def unmask(self, port: int) -> None: ...
    def echo(self, port: int, count: int, patience: float = 1.0) -> bool:
        """Answers `count` events by one each, asleep in between. False: none came for `patience` seconds."""
    def measure(self, port: int, count: int, recorder: LatencyRecorder, patience: float = 1.0) -> bool:
        """The other side, asleep while it waits; each round trip in ns. False: no answer for `patience` seconds."""

# ---- backend half ----

class Model(Protocol):
    """What the engine calls, always in the thread that is in Backend.run(). An exception sets DEVICE_NEEDS_RESET."""

    def config_refresh(self, offset: int, size: int) -> None:
        """A read touches bytes marked in `hooked_reads`: bring the config memory up to date for this range."""
    def config_write(self, offset: int, data: bytes) -> bool:
        """A write touches bytes marked in `hooked_writes`: store it (the engine does not), or False to refuse."""
    def accepts(self, features: int) -> bool:
        """May FEATURES_OK be set with these driver features (already a subset of the offered ones)?"""
    def activate(self, features: int, queues: list[int]) -> None:
        """DRIVER_OK: rings of `queues` are mapped."""
    def reset(self) -> None:
        """Device reset; the queues are stopped and every request is forgotten."""
    def queue_reset(self, queue: int) -> None:
        """The driver reset this virtqueue alone; its requests are forgotten."""
    def process(self, queue: int, batch: Batch) -> Sequence[int]:
        """One batch of a handled queue. Returns the bytes written for each request; -1: completed later."""
    def kicked(self, queue: int) -> None:
        """A pulled queue has new buffers."""
    def failed(self, where: str, error: BaseException) -> int:
        """A call above raised `error`; logs it and returns the error code to record (43 or 64)."""

class Backend:
    """One device of one frontend: its channel, queues and loop (docs/protocol.md)."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        frontend: int,
        model: Model,
        *,
        device_id: int,
        vendor_id: int,
        features: int,
        config: bytearray | memoryview | npt.NDArray[np.uint8],
        hooked_reads: bytes,
        writable: bytes,
        hooked_writes: bytes,
        queue_sizes: Sequence[int],
        pulled: Sequence[bool],
        spin_us: float = 50.0,
        most_spin_us: float = 0.0,
    ) -> None:
        """`config` is the memory plain reads are answered from: a writable buffer of bytes, shape (size,), such as a
        memoryview or a numpy array. Masks have its length.

        `features`: offered, of any width. `spin_us`: how long to spin after the last work before sleeping;
        0 never, infinity always. `most_spin_us`: if more, spins up to so long while the driver is busy.
        """
    def connect(
        self,
        fe_to_be_ref: int,
        be_to_fe_ref: int,
        event_channel: int,
        queue_event_channels: Sequence[int | None],
        arena: tuple[int, int] | None = None,
    ) -> None:
        """Maps the pages, binds the ports, writes the header. Raises HostError, ChannelError (bad_magic, bad_version).

        `arena`: (first reference, pages), mapped at DRIVER_OK.
        """
    def run(self) -> str:
        """Serves the device until it ends, GIL released; then disconnects (everything unmapped, live byte 0).

        Returns "stopped" (after stop()), "broken" (the channel; see error_code) or "frontend-gone".
        """
    def stop(self) -> None:
        """Makes run() return, from any thread; requests in flight in a model call are finished first."""
    def post(self, callback: Callable[[], None]) -> None:
        """Runs `callback` in the device's thread, from any thread. Its exceptions go to Model.failed."""
    def handle(self, message: bytes) -> bytes:
        """Answers one message as if it had come through the ring; the same code. Raises ChannelError."""
    # From the device's thread only:
    def pop(self, queue: int) -> tuple[int, bytes, list[memoryview]] | None:
        """Takes the next available buffer of a pulled queue."""
    def complete(self, queue: int, head: int, written: int) -> None:
        """Gives a buffer back. ValueError: `head` is not in flight."""
    def config_changed(self) -> None:
        """Raises the generation and notifies the driver."""
    def needs_reset(self, code: int, detail: int = 0) -> None: ...
    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Calls `callback` in the device's thread while `fd` is readable."""
    def unwatch(self, fd: int) -> None: ...
    @property
    def device_status(self) -> int: ...
    @property
    def driver_features(self) -> int: ...
    @property
    def error_code(self) -> int: ...
    @property
    def error_detail(self) -> int: ...
    @property
    def connected(self) -> bool: ...
    @property
    def mapped_pages(self) -> int: ...
    def counters(self) -> dict[str, int]:
        """requests, kicks, sleeps, notifications, buffers, guest_errors: since construction."""

# ---- frontend half ----

class Frontend:
    """The driver's end of a config channel: allocates and grants the two pages, offers cfg."""

    def __init__(self, hypervisor: Hypervisor, backend: int) -> None: ...
    @property
    def fe_to_be_ref(self) -> int: ...
    @property
    def be_to_fe_ref(self) -> int: ...
    @property
    def event_channel(self) -> int: ...
    def check_header(self) -> None:
        """After the backend went to Connected. Raises ChannelError: bad_magic, bad_version, or PeerDead."""
    def exchange(self, msg_id: int, payload: bytes = b"", timeout: float = 2.0) -> bytes:
        """One request, one answer; returns the answer's payload. GIL released while waiting.

        Raises ChannelTimeout, PeerDead, ChannelError (an answer that does not match), ValueError (payload too long).
        """
    def new_epoch(self) -> None:
        """Call after each device reset: answers to earlier requests are stale."""
    def wait_event(self, timeout: float) -> bool:
        """Sleeps until the backend notifies cfg; False when the timeout passed."""
    def fileno(self) -> int: ...
    @property
    def spin_us(self) -> float:
        """Spin budget before sleeping; default 50."""
    @spin_us.setter
    def spin_us(self, value: float) -> None: ...
    @property
    def device_status(self) -> int: ...
    @property
    def config_generation(self) -> int: ...
    @property
    def error_code(self) -> int: ...
    @property
    def error_detail(self) -> int: ...
    @property
    def backend_alive(self) -> bool: ...
    @property
    def backend_waiting(self) -> bool: ...
    @property
    def broken(self) -> bool: ...
    @property
    def fe_page(self) -> memoryview:
        """The raw fe-to-be page (writable), for tests that lie."""
    @property
    def be_page(self) -> memoryview: ...
    def measure(self, msg_id: int, payload: bytes, count: int, recorder: LatencyRecorder, idle: bool = False) -> None:
        """`count` exchanges of the same request, each round trip recorded in ns; spins only.

        `idle`: before each one waits until the backend sleeps.
        """
    def measure_burst(self, requests: Sequence[tuple[int, bytes]], count: int, recorder: LatencyRecorder) -> None:
        """`count` times all of `requests` (message id, payload), each burst recorded as one; spins only."""
    def close(self) -> None:
        """Clears the live byte, withdraws the pages, closes cfg. Idempotent."""

class DriverQueue:
    """Driver half of one split virtqueue, with its event channel."""

    def __init__(self, hypervisor: Hypervisor, backend: int, *, index: int, size: int, features: int) -> None: ...
    @property
    def event_channel(self) -> int: ...
    def setup(self, size: int, features: int) -> None:
        """Withdraws the ring and makes a fresh one for a device that was reset; the event channel stays.

        The event channel is published before the size and the features are known (docs/protocol.md section 4), so a
        driver constructs its queues with a small size and calls this during probe and after every reset.
        """
    @property
    def index(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def descriptor_address(self) -> int: ...
    @property
    def driver_address(self) -> int: ...
    @property
    def device_address(self) -> int: ...
    def add(self, readable: Sequence[tuple[int, int]], writable: Sequence[tuple[int, int]]) -> int:
        """Offers one chain of (address, size) pieces; returns its head. Visible after kick(). Raises QueueFull."""
    def kick(self) -> bool:
        """Publishes what was added and notifies the device if it asked for it; True if it did notify."""
    def pop(self) -> tuple[int, int] | None:
        """The next used chain: (head, bytes written). Raises ChannelError when the device lies."""
    def wait(self, timeout: float) -> bool:
        """Spins, then sleeps until a used chain is there; False when the timeout passed."""
    def fileno(self) -> int: ...
    @property
    def free_descriptors(self) -> int: ...
    @property
    def memory(self) -> memoryview:
        """The raw ring pages (writable), for tests that lie."""
    def measure(
        self,
        readable: Sequence[tuple[int, int]],
        writable: Sequence[tuple[int, int]],
        count: int,
        recorder: LatencyRecorder,
    ) -> None:
        """`count` times add, kick, spin until used; each round trip recorded in ns.

        Raises ChannelTimeout (ring full, or 2 s without an answer), ChannelError (the device lies).
        """
    def close(self) -> None: ...

# ---- measuring ----

class LatencyRecorder:
    """Latencies in ns in log-linear buckets (relative error below 1 %); recording does not allocate."""

    def __init__(self) -> None: ...
    def record(self, nanoseconds: int) -> None: ...
    def merge(self, other: LatencyRecorder) -> None: ...
    def clear(self) -> None: ...
    @property
    def count(self) -> int: ...
    @property
    def min(self) -> int:
        """Smallest value, exact; 0 when empty."""
    @property
    def max(self) -> int: ...
    def percentile(self, percent: float) -> int:
        """Upper bound of the bucket that holds the percentile; 0 when empty. ValueError outside 0..100."""
    def buckets(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
        """(upper bounds in ns, counts) of the buckets that are not empty."""
    def to_bytes(self) -> bytes: ...
    @staticmethod
    def from_bytes(data: bytes) -> LatencyRecorder: ...

def clock_ns() -> int:
    """The CPU's own clock in ns, from an unknown start: cheap also where clock_gettime is a system call."""

def measure_wake_us() -> float:
    """Microseconds from a write to an eventfd until a thread that slept on it runs, the lower quartile of 16 tries; 0
    if it cannot be measured: no descriptors, no thread, or not woken within 0.1 s.
    """

def pin_thread(cpu: int) -> None:
    """Pins the calling thread to a CPU. Raises HostError."""

class PingPong:
    """The limit: two words in shared memory, one cache line each, two processes or domains; no protocol."""

    def __init__(self, memory: bytearray | memoryview | mmap, patience: float = 1.0) -> None:
        """`memory`: writable, 128 bytes of a page that both sides see, held while this is. `patience`: seconds to wait.

        ValueError: too small, or not at the start of a cache line.
        """
    def serve(self, count: int, eventfd: int = -1) -> bool:
        """Answers `count` pings, spinning; with `eventfd` asleep on it before each. False: none came in time."""
    def measure(self, count: int, recorder: LatencyRecorder, eventfd: int = -1, pause_us: float = 100.0) -> bool:
        """The other side, spinning; each round trip in ns. With `eventfd` leaves the server `pause_us` to fall asleep.

        False: no answer came in time.
        """
