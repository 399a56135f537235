"""virtio-net: an Ethernet card whose cable ends in a tap interface or a socket of the host (virtio 1.3 section 5.1)."""

from __future__ import annotations

import hashlib
import logging
import struct
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
    S_ANNOUNCE,
    S_LINK_UP,
    SPEED_UNKNOWN,
    NetConfig,
)
from devices.net_control import Control, is_unicast
from devices.net_filter import ReceiveFilter
from devices.net_steering import FlowTable
from devices.queue import Queue
from devices.request import Request

HEADER_BYTES = 12
ETHERNET_BYTES = 14
_HEADER = struct.Struct("<BBHHHHH")  # flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers
_VLAN_TAG = b"\x81\x00"

MAX_PAIRS = 64
MIN_MTU, MAX_MTU = 68, 65535
# Frames taken from the host before the device looks at its other work.
_RECEIVE_BUDGET = 64
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

    Frames the driver has no buffers for, or that its filters refuse, are dropped and counted in `counters`; nothing
    is kept for later. Checksum and segmentation offloads are not offered: every frame is whole in both directions.
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
    offers = features | mask(F_MTU, F_MQ)
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
    ) -> None:
        if mtu is not None and not MIN_MTU <= mtu <= MAX_MTU:
            raise ValueError(f"mtu={mtu} is not from {MIN_MTU} to {MAX_MTU}")
        if speed is not None and not 0 <= speed <= 0x7FFFFFFF:
            raise ValueError(f"speed={speed} is not from 0 to 2147483647 Mbit/s")
        if not 1 <= queues <= MAX_PAIRS:
            raise ValueError(f"queues={queues} is not from 1 to {MAX_PAIRS}")
        self._cable = _cable(tap, socket, peer)
        self._mac = mac or _stable_mac(self._cable.name)
        if not is_unicast(self._mac):
            raise ValueError(f"mac={self._mac.hex(':')} is not the address of one station")

        features = self.features | (mask(F_MTU) if mtu else 0) | (mask(F_MQ) if queues > 1 else 0)
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
        self._max_packet = self.config.mtu if has(features, F_MTU) else MAX_MTU
        self._filter = ReceiveFilter(
            mac=self._mac if has(features, F_MAC) else None,
            by_address=has(features, F_CTRL_RX),
            by_vlan=has(features, F_CTRL_VLAN),
        )
        self._control = Control(features, self._filter, self)
        try:
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
        gso_type = request.readable[1]
        frame = memoryview(request.readable)[HEADER_BYTES:]
        if self._max_pairs > 1 and len(frame) >= ETHERNET_BYTES:
            self._flows.learn(frame, request.queue // 2)
        fits = ETHERNET_BYTES <= len(frame) <= self._longest(frame)
        if fits and not gso_type and self._link_up and self._cable.send(frame):
            self.counters["transmitted"] += 1
        else:
            self.counters["transmit dropped"] += 1

    def controlq(self, request: Request) -> None:
        if not request.writable_bytes:
            raise RequestError(f"net: control command without an ack byte: {request!r}")
        request.write(bytes((self._control.execute(request.readable),)))

    def _receive(self) -> None:
        try:
            for _ in range(_RECEIVE_BUDGET):
                frame = self._cable.receive()
                if frame is None:
                    return
                self.counters[self._deliver(frame)] += 1
        except OSError as error:
            self._unplugged(error)

    def _deliver(self, frame: bytes) -> str:
        """Puts a frame into the driver's buffers if it is for the driver. Returns the counter that counts it."""
        if not (ETHERNET_BYTES <= len(frame) <= self._longest(frame)) or not self._link_up:
            return "receive dropped"
        if not self._filter.accepts(frame):
            return "receive filtered"
        pair = self._flows.choose(frame, self._pairs) if self._pairs > 1 else 0
        buffers = self._buffers(2 * pair, HEADER_BYTES + len(frame))
        if buffers is None:
            return "receive without buffers"
        packet = memoryview(_HEADER.pack(0, 0, 0, 0, 0, 0, len(buffers)) + frame)
        for buffer in buffers:
            size = min(buffer.room, len(packet))
            buffer.write(packet[:size])
            packet = packet[size:]
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

    # ---- State ----------------------------------------------------------------------------------------------------

    @property
    def _link_up(self) -> bool:
        return self.config.status & S_LINK_UP != 0

    def _longest(self, frame: bytes | memoryview) -> int:
        tagged = frame[12:14] == _VLAN_TAG
        return self._max_packet + ETHERNET_BYTES + (4 if tagged else 0)

    def _deactivate(self) -> None:
        self._mergeable = False
        self._announces = False
        self._max_packet = MAX_MTU
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


def _cable(tap: str | None, path: Path | None, peer: Path | None) -> NetBackend:
    if tap is not None and path is None and peer is None:
        return TapBackend(tap)
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
