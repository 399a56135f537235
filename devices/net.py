"""virtio-net: an Ethernet card whose cable ends in a tap interface or a socket of the host (virtio 1.3 section 5.1)."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from devices.device import Device
from devices.errors import DeviceError, RequestError
from devices.features import has, mask
from devices.net_backends import NetBackend, SocketBackend, TapBackend
from devices.net_config import (
    DUPLEX_FULL,
    DUPLEX_HALF,
    DUPLEX_UNKNOWN,
    F_CTRL_MAC_ADDR,
    F_CTRL_RX,
    F_CTRL_RX_EXTRA,
    F_CTRL_VLAN,
    F_CTRL_VQ,
    F_GUEST_ANNOUNCE,
    F_MAC,
    F_MQ,
    F_MRG_RXBUF,
    F_MTU,
    F_SPEED_DUPLEX,
    F_STATUS,
    FEATURES,
    GUEST_OFFLOADS,
    OFFLOADS,
    S_ANNOUNCE,
    S_LINK_UP,
    SPEED_UNKNOWN,
    NetConfig,
)
from devices.net_control import Control, is_unicast
from devices.net_filter import ReceiveFilter
from devices.net_header import ETHERNET_BYTES, HEADER_BYTES, MAX_MTU, NUM_BUFFERS, HeaderRules
from devices.net_steering import HEAD_BYTES, FlowTable
from devices.queue import Queue
from devices.request import Request

MAX_PAIRS = 64
MIN_MTU = 68
# What is taken from the host before the device looks at its other work. Only then does the driver see its buffers used,
# and it may have given enough for a few large frames only.
_RECEIVE_FRAMES = 64
_RECEIVE_BYTES = 256 << 10
# What may wait in a tap interface from before the driver was ready, and is not for it.
_MAX_STALE = 4096

_log = logging.getLogger(__name__)


def parse_mac(text: str) -> bytes:
    """An address written as 52:54:00:12:34:56. Raises ValueError."""
    parts = text.split(":")
    if len(parts) != 6 or not all(len(part) == 2 and set(part) <= set("0123456789abcdefABCDEF") for part in parts):
        raise ValueError("expected an address, as 52:54:00:12:34:56")
    mac = bytes.fromhex("".join(parts))
    if not is_unicast(mac):
        raise ValueError("expected the address of one station, not of a group or all zero")
    return mac


Mac = Annotated[bytes, parse_mac]


class Net(Device):
    """Network device (virtio 1.3 section 5.1) with its cable in one of two things of the host:

    tap           name of a tap interface: one that is there, else it is made, and goes with the device; or
    socket, peer  paths of a datagram socket of this device and of the one at the other end

    mac           its address; by default one made from the name of the interface or socket, so that it stays the same
    mtu           largest packet the driver should send, 68 to 65535; by default not said
    speed         in Mbit/s; by default not known
    duplex        half or full; shown when the speed is known
    queues        queue pairs, 1 to 64
    link          up or down
    offloads      of a tap: whether checksums and TCP's segments may be left to the other side, on by default. On a
                  socket every frame is whole

    Frames the driver has no buffers for, that its filters refuse, or whose header asks for what was not negotiated or
    makes no sense are dropped and counted in `counters`; nothing is kept for later.
    """

    name = "net"
    device_id = 1
    config_space = NetConfig
    config: NetConfig
    queues = (Queue("receiveq1", handler="receiveq"), Queue("transmitq1", handler="transmitq"), Queue("controlq", 64))
    features = mask(
        F_MAC, F_MRG_RXBUF, F_STATUS, F_CTRL_VQ, F_CTRL_RX, F_CTRL_VLAN, F_CTRL_RX_EXTRA, F_GUEST_ANNOUNCE,
        F_CTRL_MAC_ADDR, F_SPEED_DUPLEX,
    )  # fmt: skip
    offers = features | mask(F_MTU, F_MQ) | OFFLOADS
    feature_table = FEATURES

    def __init__(
        self,
        *,
        tap: str | None = None,
        socket: Path | None = None,
        peer: Path | None = None,
        mac: Mac | None = None,
        mtu: int | None = None,
        speed: int | None = None,
        duplex: Literal["full", "half"] = "full",
        queues: int = 1,
        link: Literal["up", "down"] = "up",
        offloads: bool = True,
    ) -> None:
        if mtu is not None and not MIN_MTU <= mtu <= MAX_MTU:
            raise ValueError(f"mtu={mtu} is not from {MIN_MTU} to {MAX_MTU}")
        if speed is not None and not 0 <= speed <= 0x7FFFFFFF:
            raise ValueError(f"speed={speed} is not from 0 to 2147483647 Mbit/s")
        if not 1 <= queues <= MAX_PAIRS:
            raise ValueError(f"queues={queues} is not from 1 to {MAX_PAIRS}")
        self._cable = _cable(tap, socket, peer, offloads)
        self._mac = mac or _stable_mac(self._cable.name)
        if not is_unicast(self._mac):
            raise ValueError(f"mac={self._mac.hex(':')} is not the address of one station")

        features = self.features | (mask(F_MTU) if mtu else 0) | (mask(F_MQ) if queues > 1 else 0)
        features |= OFFLOADS if self._cable.carries_headers else 0
        super().__init__(features=features, queues=[*_pairs(queues), Queue("controlq", 64, feature=F_CTRL_VQ)])

        self.counters: Counter[str] = Counter()
        self._max_pairs = queues
        self._watching = False
        self._deactivate()

        config = self.config
        config.mac = self._mac
        config.status = S_LINK_UP if link == "up" else 0
        config.speed = SPEED_UNKNOWN if speed is None else speed
        config.duplex = DUPLEX_UNKNOWN if speed is None else DUPLEX_FULL if duplex == "full" else DUPLEX_HALF
        if mtu:
            config.mtu = mtu
        if queues > 1:
            config.max_virtqueue_pairs = queues

    # ---- Life cycle -----------------------------------------------------------------------------------------------

    def check(self) -> None:
        self._cable.check()

    def open(self) -> None:
        self._cable.open()

    def close(self) -> None:
        self._cable.close()

    def activate(self, features: int, queues: Sequence[int]) -> None:
        self._mergeable = has(features, F_MRG_RXBUF)
        self._announces = has(features, F_GUEST_ANNOUNCE)
        mtu = self.config.mtu
        self._rules = HeaderRules(features, mtu if has(features, F_MTU) else MAX_MTU, mtu or self._cable.mtu())
        self._filter = ReceiveFilter(
            mac=self._mac if has(features, F_MAC) else None,
            by_address=has(features, F_CTRL_RX),
            by_vlan=has(features, F_CTRL_VLAN),
        )
        # Until the driver says otherwise, as in QEMU: one whose emulator was restarted does not repeat it.
        self._filter.promisc = has(features, F_CTRL_RX)
        self._control = Control(features, self._filter, self)
        try:
            self._cable.set_offloads(features & GUEST_OFFLOADS)
            for _ in range(_MAX_STALE):
                if self._cable.receive() is None:
                    break
        except OSError as error:
            self._unplugged(error)
            return
        self.backend.watch(self._cable.fileno(), self._receive)
        self._watching = True

    def reset(self) -> None:
        self._unwatch()
        with contextlib.suppress(OSError):  # the interface is gone
            self._cable.set_offloads(0)
        self._deactivate()
        self.config.mac = self._mac
        self.config.status &= ~S_ANNOUNCE

    def update(self, *, link: Literal["up", "down"] | None = None, announce: bool = False) -> None:
        """Sets the link, or asks the driver to announce itself to the network (GUEST_ANNOUNCE). Raises DeviceError."""
        if announce and not self._announces:
            raise DeviceError(f"{self.name}: the driver did not negotiate VIRTIO_NET_F_GUEST_ANNOUNCE")
        status = self.config.status | (S_ANNOUNCE if announce else 0)
        if link is not None:
            status = status & ~S_LINK_UP | (S_LINK_UP if link == "up" else 0)
        if status != self.config.status:
            self.config.status = status
            self.backend.config_changed()

    def queues_for(self, features: int) -> Sequence[Queue | None]:
        # The control queue follows the pairs the driver can use (section 5.1.2).
        pairs = self._max_pairs if has(features, F_MQ) else 1
        used = [*self.queues[: 2 * pairs], self.queues[-1] if has(features, F_CTRL_VQ) else None]
        return (*used, *[None] * (len(self.queues) - len(used)))

    # ---- The queues -----------------------------------------------------------------------------------------------

    def transmitq(self, request: Request) -> None:
        if len(request.readable) < HEADER_BYTES:
            raise RequestError(f"net: transmitted buffer shorter than its header: {request!r}")
        frame = memoryview(request.readable)[HEADER_BYTES:]
        if self._max_pairs > 1 and len(frame) >= ETHERNET_BYTES:
            self._flows.learn(frame, request.queue // 2)
        header = self._rules.transmitted(request.readable)
        if header is not None and self._link_up and self._cable.send(frame, header):
            self.counters["transmitted"] += 1
        else:
            self.counters["transmit dropped"] += 1

    def controlq(self, request: Request) -> None:
        if not request.writable_bytes:
            raise RequestError(f"net: control command without an ack byte: {request!r}")
        request.write(bytes((self._control.execute(request.readable),)))

    def _receive(self) -> None:
        try:
            size = 0
            for _ in range(_RECEIVE_FRAMES):
                packet = self._cable.receive()
                if packet is None:
                    return
                self.counters[self._deliver(packet)] += 1
                size += len(packet)
                if size >= _RECEIVE_BYTES:
                    return
        except OSError as error:
            self._unplugged(error)

    def _deliver(self, packet: memoryview) -> str:
        """Puts a packet into the driver's buffers if it is for the driver. Returns the counter that counts it."""
        if not self._rules.received(packet) or not self._link_up:
            return "receive dropped"
        head = bytes(packet[HEADER_BYTES : HEADER_BYTES + HEAD_BYTES])
        if not self._filter.accepts(head):
            return "receive filtered"
        pair = self._flows.choose(head, self._pairs) if self._pairs > 1 else 0
        buffers = self._buffers(2 * pair, len(packet))
        if buffers is None:
            return "receive without buffers"
        packet[NUM_BUFFERS] = len(buffers).to_bytes(2, "little")
        start = 0
        for buffer in buffers:
            end = start + buffer.writable_bytes
            buffer.write(packet[start:end])
            start = end
            self.backend.complete(buffer)
        return "received"

    def _buffers(self, queue: int, size: int) -> list[Request] | None:
        """Buffers of the driver with room for `size` bytes; several only if it can merge them; None if it has not.

        Buffers that do not suffice go back empty: kept, they could outlive a reset of the queue.
        """
        buffers: list[Request] = []
        room = 0
        while room < size and (self._mergeable or not buffers):
            buffer = self.backend.pop(queue)
            if buffer is None:
                break
            if buffer.writable_bytes < HEADER_BYTES:
                raise RequestError(f"net: receive buffer shorter than a header: {buffer!r}")
            if buffer.readable:  # copies of it would pile up while buffers are gathered
                raise RequestError(f"net: receive buffer with a device-readable part: {buffer!r}")
            buffers.append(buffer)
            room += buffer.writable_bytes
        if room >= size:
            return buffers
        for buffer in buffers:
            self.backend.complete(buffer)
        return None

    # ---- What the control queue sets ------------------------------------------------------------------------------

    def set_mac(self, mac: bytes) -> None:
        self._filter.mac = mac
        self.config.mac = mac

    def acknowledge_announce(self) -> None:
        self.config.status &= ~S_ANNOUNCE

    def set_pairs(self, pairs: int) -> bool:
        if not 1 <= pairs <= self._max_pairs:
            return False
        self._pairs = pairs
        return True

    def set_guest_offloads(self, offloads: int) -> bool:
        try:
            self._cable.set_offloads(offloads)
        except OSError:
            return False
        self._rules.set_received(offloads)
        return True

    # ---- State ----------------------------------------------------------------------------------------------------

    @property
    def _link_up(self) -> bool:
        return self.config.status & S_LINK_UP != 0

    def _deactivate(self) -> None:
        self._mergeable = False
        self._announces = False
        self._rules = HeaderRules(0, MAX_MTU)
        self._pairs = 1
        self._flows = FlowTable()
        self._filter = ReceiveFilter(mac=self._mac, by_address=True, by_vlan=True)
        self._control = Control(0, self._filter, self)

    def _unwatch(self) -> None:
        if self._watching:
            self.backend.unwatch(self._cable.fileno())
            self._watching = False

    def _unplugged(self, error: OSError) -> None:
        """The host's end is gone for good: the link goes down, the device stays."""
        if self._link_up:  # a guest that resets again and again is told of it again, the log is not
            _log.error("%s: %s; the link is down", self._cable.name, error)
        self._unwatch()
        self.update(link="down")


def _cable(tap: str | None, path: Path | None, peer: Path | None, offloads: bool) -> NetBackend:
    if tap is not None and path is None and peer is None:
        return TapBackend(tap, offloads=offloads)
    if path is not None and peer is not None and tap is None:
        return SocketBackend(path, peer)
    raise ValueError("a net device needs tap=NAME, or socket=PATH and peer=PATH")


def _pairs(count: int) -> list[Queue]:
    queues = []
    for number in range(1, count + 1):
        # The device has no method receiveq: it pulls buffers when a frame is there.
        queues.append(Queue(f"receiveq{number}", handler="receiveq"))
        queues.append(Queue(f"transmitq{number}", handler="transmitq"))
    return queues


def _stable_mac(name: str) -> bytes:
    """A locally administered address (IEEE 802) that depends on `name` alone."""
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    return bytes((digest[0] & 0xFC | 0x02, *digest[1:6]))
