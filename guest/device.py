"""A virtio device as its driver sees it: Linux's probe sequence, config space, status, reset and recovery."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import ClassVar, Final, Self

from cpp_ring import TRANSPORT_FEATURES, ChannelError, PeerDead, error_name
from cpp_ring.store import StoreError
from guest import messages
from guest.errors import (
    BadAnswer,
    ConfigRefused,
    DiedDuringProbe,
    DriverError,
    InitialisationFailed,
    NeedsReset,
    RequestTimeout,
    Unsupported,
)
from guest.hypervisor import Domain
from guest.messages import DeviceInfo, QueueInfo
from guest.queue import Chain, RequestQueue
from guest.transport import Transport

ACKNOWLEDGE: Final = 1
DRIVER: Final = 2
DRIVER_OK: Final = 4
FEATURES_OK: Final = 8
NEEDS_RESET: Final = 64
FAILED: Final = 128

VERSION_1: Final = 32

SLICE: Final = 0.1
"""Seconds between two looks at the life of the device while waiting for a request."""

MAX_RESETS: Final = 3
"""Resets without one completed request before a device that asks for the next one is given up."""

MAX_RECOVERIES: Final = 5
"""How often one recovery begins anew because the backend died under it."""


def bits(*numbers: int) -> int:
    """Mask of feature bits."""
    return sum(1 << number for number in numbers)


class VirtioDevice:
    """Connects and probes at construction. Base of the drivers; by itself it drives any device that needs no feature
    of its own: it sets up every virtqueue, for a caller who submits chains to `queues`.

    Used from one thread. A context manager, which closes it. An emulator that dies, restarts or asks for a reset is
    dealt with inside the calls that wait (`wait`, config reads and writes); in-flight requests are repeated in order.
    """

    device_id: ClassVar[int | None] = None
    """The virtio device id this driver is for; None: any."""
    known_features: ClassVar[int] = 0
    """Feature bits of the device type that this driver understands, besides the transport's."""
    needed_features: ClassVar[dict[int, int]] = {}
    """Feature bit -> the feature bits it needs; without them it is not taken."""
    arena_pages: ClassVar[int] = 64

    def __init__(
        self,
        domain: Domain,
        number: int,
        *,
        timeout: float = 30.0,
        exchange_timeout: float = 2.0,
        refuse: int = 0,
        queue_size: int = 128,
    ) -> None:
        """`timeout`: seconds a request, a connection or a recovery may take. `refuse`: features not to take.
        `queue_size`: upper limit, a power of two.

        Raises NoSuchDevice, ConnectionFailed, DeviceGone, InitialisationFailed, BadAnswer, ChannelError, StoreError,
        HostError.
        """
        self.timeout = timeout
        self.refuse = refuse
        self.queue_size = queue_size
        self.queues: list[RequestQueue] = []
        self.offered = 0
        self.features = 0
        self.info = DeviceInfo(0, 0, 0, 0, 0)
        self._generation_seen = 0
        self._looked = 0.0
        self._resets = 0
        self._completed_at_reset = -1
        self._probing = False
        self.prepare()
        self.transport = Transport(domain, number, arena_pages=self.arena_pages, timeout=exchange_timeout)
        try:
            self.transport.connect(timeout)
            self.probe()
        except BaseException:
            self.transport.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prepare(self) -> None:
        """Makes what a driver keeps besides its queues. Comes once, before the device is connected."""

    # ---- probe ----

    def probe(self) -> None:
        """Initialises the device as Linux does: register_virtio_device, virtio_dev_probe, the driver's own probe."""
        self._probing = True
        try:
            self.info = messages.device_info(self.transport.exchange(messages.GET_DEVICE_INFO))
            if self.device_id not in (None, self.info.device_id):
                raise InitialisationFailed(f"device id {self.info.device_id}, this driver is for {self.device_id}")
            self.reset()
            try:
                self.add_status(ACKNOWLEDGE)
                self.add_status(DRIVER)
                self.offered = self._read_features()
                self.features = self._negotiate()
                self._write_features()
                self.add_status(FEATURES_OK)
                if not self.status & FEATURES_OK:
                    raise InitialisationFailed(f"features {self.features:#x} refused: {self._objection()}")
                self._generation_seen = self.transport.frontend.config_generation
                self.start()
                self.add_status(DRIVER_OK)
                if not self.status & DRIVER_OK:
                    raise InitialisationFailed(f"DRIVER_OK refused: {self._objection()}")
            except DriverError:
                self._fail()
                raise
            for queue in self.queues:
                queue.restart()
            self.started()
        finally:
            self._probing = False

    def start(self) -> None:
        """What Linux calls the driver's probe, between FEATURES_OK and DRIVER_OK: read config space, set up queues."""
        self.find_queues(len(self.transport.queues))

    def started(self) -> None:
        """After DRIVER_OK, at every probe."""

    def reset(self) -> None:
        """Device reset; answers to anything asked before are stale from here on."""
        status = self._set_status(0)
        if status != 0:
            raise InitialisationFailed(f"status {status:#x} after reset")
        self.transport.frontend.new_epoch()

    def add_status(self, bit: int) -> None:
        self._set_status(self.status | bit)

    @property
    def status(self) -> int:
        """The device status, asked of the device."""
        return messages.status(self.transport.exchange(messages.GET_DEVICE_STATUS), "GET_DEVICE_STATUS")

    @property
    def needs_reset(self) -> bool:
        """DEVICE_NEEDS_RESET, as the backend's header mirrors it."""
        return bool(self.transport.frontend.device_status & NEEDS_RESET)

    def has(self, feature: int) -> bool:
        """Was this feature bit negotiated?"""
        return bool(self.features >> feature & 1)

    def find_queues(self, count: int) -> None:
        """Sets up virtqueues 0..count-1; those of an earlier life keep their requests."""
        rings = self.transport.queues
        if count > len(rings):
            raise InitialisationFailed(f"{count} virtqueues needed, the backend announced {len(rings)}")
        for index in range(count):
            largest = self.queue_info(index).max_size
            size = 1 << (min(largest, self.queue_size).bit_length() - 1) if largest else 0
            if size == 0:
                raise InitialisationFailed(f"the device has no virtqueue {index}")
            ring = rings[index]
            ring.setup(size, self.features)
            areas = (ring.descriptor_address, ring.driver_address, ring.device_address)
            self.transport.exchange(messages.SET_VQUEUE, messages.set_vqueue(index, size, *areas))
            # A refusal shows only here: the answer to SET_VQUEUE is empty either way.
            taken = self.queue_info(index)
            if (taken.size, taken.descriptor, taken.driver, taken.device) != (size, *areas):
                raise InitialisationFailed(f"virtqueue {index} of {size} entries refused: {self._objection()}")
            if index < len(self.queues):
                self.queues[index].attach(ring)
            else:
                self.queues.append(RequestQueue(ring, self.transport.arena))

    def queue_info(self, index: int) -> QueueInfo:
        """GET_VQUEUE."""
        return messages.vqueue(self.transport.exchange(messages.GET_VQUEUE, messages.word(index)), index)

    def _set_status(self, status: int) -> int:
        payload = self.transport.exchange(messages.SET_DEVICE_STATUS, messages.word(status))
        return messages.status(payload, "SET_DEVICE_STATUS")

    def _feature_blocks(self) -> int:
        return min(self.info.feature_bits // 32, messages.MAX_FEATURE_BLOCKS)

    def _read_features(self) -> int:
        count = self._feature_blocks()
        payload = self.transport.exchange(messages.GET_DEVICE_FEATURES, messages.get_features(0, count))
        return messages.features(payload, 0, count)

    def _write_features(self) -> None:
        payload = messages.set_features(0, self._feature_blocks(), self.features)
        messages.empty(self.transport.exchange(messages.SET_DRIVER_FEATURES, payload), "SET_DRIVER_FEATURES")

    def _negotiate(self) -> int:
        features = self.offered & (TRANSPORT_FEATURES | self.known_features) & ~self.refuse
        if not features >> VERSION_1 & 1:
            raise InitialisationFailed("the device does not offer VIRTIO_F_VERSION_1")
        while lacking := bits(
            *(bit for bit, needs in self.needed_features.items() if features >> bit & 1 and needs & ~features)
        ):
            features &= ~lacking
        return features

    def _fail(self) -> None:
        with suppress(ChannelError, DriverError):  # what went wrong before is what counts
            self.add_status(FAILED)

    def _objection(self) -> str:
        """The backend's last objection, in words."""
        frontend = self.transport.frontend
        if frontend.error_code == 0:
            return "the device gives no reason"
        return f"{error_name(frontend.error_code)} ({frontend.error_detail})"

    # ---- config space ----

    def config_read(self, offset: int, size: int) -> bytes:
        """Bytes of config space, all of one generation. Raises ConfigRefused outside of it.

        Up to 256 bytes are one exchange and consistent by themselves; more are read again until no change came in
        between, as Linux's virtio_cread does with its generation loop.
        """
        deadline = time.monotonic() + self.timeout
        while True:
            parts = [
                self._read_part(at, min(messages.MAX_CONFIG_DATA, offset + size - at))
                for at in range(offset, offset + size, messages.MAX_CONFIG_DATA)
            ]
            if len({part.generation for part in parts}) <= 1:
                return b"".join(part.data for part in parts)
            if time.monotonic() > deadline:
                raise BadAnswer(f"config: the generation changed at every read for {self.timeout:g} s")

    def config_number(self, offset: int, size: int) -> int:
        """A little-endian field of `size` bytes."""
        return int.from_bytes(self.config_read(offset, size), "little")

    def config_write(self, offset: int, data: bytes) -> bytes:
        """Writes up to 256 bytes; returns them as they now are. Raises ConfigRefused."""
        if len(data) > messages.MAX_CONFIG_DATA:
            raise ValueError(f"{len(data)} bytes in one config write, the limit is {messages.MAX_CONFIG_DATA}")
        before = self.transport.frontend.config_generation
        request = messages.set_config(before, offset, data)
        answer = messages.config(self._call(messages.SET_CONFIG, request), offset, len(data))
        if answer is None:
            raise ConfigRefused(f"config write of {len(data)} bytes at {offset} refused: {self._objection()}")
        # Our own write moves the generation by one; only what moves it further is a change to be told of.
        if before == self._generation_seen and answer.generation == (before + 1) & 0xFFFFFFFF:
            self._generation_seen = answer.generation
        return answer.data

    def config_changed(self) -> bool:
        """Has the config generation moved since this was last asked (or since probe)?"""
        generation = self.transport.frontend.config_generation
        changed = generation != self._generation_seen
        self._generation_seen = generation
        return changed

    def wait_config_change(self, timeout: float) -> bool:
        """Sleeps until config space changes; False when the timeout passed. A restarted device counts as changed."""
        deadline = time.monotonic() + timeout
        while not (self.service() or self.config_changed()):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self.transport.frontend.wait_event(min(left, SLICE))
        return True

    def _read_part(self, offset: int, size: int) -> messages.ConfigData:
        answer = self._call(messages.GET_CONFIG, messages.get_config(offset, size))
        part = messages.config(answer, offset, size)
        if part is None:
            raise ConfigRefused(f"config read of {size} bytes at {offset} refused: {self._objection()}")
        return part

    def _call(self, msg_id: int, payload: bytes) -> bytes:
        """An exchange that survives the death of the backend; for messages that may run twice."""
        try:
            return self.transport.exchange(msg_id, payload)
        except PeerDead:
            if self._probing:
                raise
        self.recover()
        return self.transport.exchange(msg_id, payload)

    # ---- requests ----

    def wait(self, queue: RequestQueue, done: Callable[[], bool], timeout: float | None = None) -> None:
        """Until `done`, checked after every reaping of `queue`. Recovers a device that died or asks for a reset.

        Raises RequestTimeout, NeedsReset, DeviceGone, ConnectionFailed, ChannelError.
        """
        now = time.monotonic()
        deadline = now + (self.timeout if timeout is None else timeout)
        while True:
            queue.reap()
            if done():
                return
            if now > deadline:
                raise RequestTimeout(f"no completion on virtqueue {queue.ring.index} before the deadline")
            # Also while requests complete: a busy driver has to follow an unplug, too.
            if now - self._looked > SLICE:
                self._looked = now
                self.service()
            queue.ring.wait(min(max(0.0, deadline - now), SLICE))
            now = time.monotonic()

    def perform(self, queue: RequestQueue, chain: Chain, timeout: float | None = None) -> None:
        """Submits one request and waits for it; on an exception it is abandoned."""
        queue.submit(chain)
        self.complete(queue, chain, timeout)

    def complete(self, queue: RequestQueue, chain: Chain, timeout: float | None = None) -> None:
        """Waits for a submitted request; on an exception it is abandoned."""
        try:
            self.wait(queue, lambda: chain.done, timeout)
        except BaseException:
            queue.abandon(chain)
            raise

    # ---- life ----

    def service(self) -> bool:
        """Looks at the life of the device and recovers it if need be; True if it was. For idle drivers: call it when
        `transport.store` is readable, so that an unplug is followed."""
        lost = self.transport.lost()
        if self._probing and (lost or self.needs_reset):
            raise DiedDuringProbe(f"the device died while it was being initialised: {self._objection()}")
        if lost:
            self.recover()
            return True
        if self.needs_reset:
            completed = sum(queue.completed for queue in self.queues)
            self._resets = 1 if completed != self._completed_at_reset else self._resets + 1
            self._completed_at_reset = completed
            if self._resets > MAX_RESETS:
                raise NeedsReset(f"the device needs a reset again and again: {self._objection()}")
            self.recover()
            return True
        return False

    def recover(self, timeout: float | None = None) -> None:
        """Reconnects if the backend died, resets, probes, and repeats in order every request without completion."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        for queue in self.queues:
            queue.harvest()
        for attempt in range(MAX_RECOVERIES):
            try:
                if self.transport.lost():
                    self.transport.connect(deadline - time.monotonic())
                self.probe()
                return
            except (PeerDead, DiedDuringProbe):
                if attempt == MAX_RECOVERIES - 1 or time.monotonic() > deadline:
                    raise

    def require(self, feature: int, what: str) -> None:
        """Raises Unsupported unless the feature bit was negotiated."""
        if not self.has(feature):
            raise Unsupported(f"the device has no {what} (feature {feature} was not negotiated)")

    def close(self) -> None:
        """Resets the device and leaves it. Idempotent."""
        with suppress(ChannelError, DriverError, StoreError):  # a device that cannot be reset is left as it is
            if self.transport.connected and not self.transport.lost():
                self.reset()
        self.transport.close()
