"""Network device driver (virtio 1.3 section 5.1): whole frames, no offloads, mergeable receive buffers."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable
from enum import IntEnum
from functools import partial
from typing import ClassVar, Final

from guest.arena import SECTOR, Arena, Buffer
from guest.device import VirtioDevice, bits
from guest.errors import BadAnswer, ConfigRefused, InitialisationFailed, RequestTimeout
from guest.queue import Chain, RequestQueue

MTU: Final = 3
MAC: Final = 5
MRG_RXBUF: Final = 15
STATUS: Final = 16
CTRL_VQ: Final = 17
CTRL_RX: Final = 18
CTRL_VLAN: Final = 19
CTRL_RX_EXTRA: Final = 20
GUEST_ANNOUNCE: Final = 21
MQ: Final = 22
CTRL_MAC_ADDR: Final = 23
SPEED_DUPLEX: Final = 63

LINK_UP: Final = 1
ANNOUNCE: Final = 2

RX_BUFFER: Final = 2048
"""Bytes of a receive buffer; with MRG_RXBUF a longer frame takes several."""
ETHERNET: Final = 18
"""Bytes of an Ethernet header with a VLAN tag."""
DEFAULT_MTU: Final = 1500
MAX_SPEED: Final = 0x7FFFFFFF
"""Mbit/s; above it a device does not know (virtio 1.3 section 5.1.4)."""
MAX_FRAME: Final = 65536

_HEADER = struct.Struct("<BBHHHHH")
"""struct virtio_net_hdr_v1: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers."""
_COUNT = struct.Struct("<I")


class RxMode(IntEnum):
    """Commands of class VIRTIO_NET_CTRL_RX."""

    PROMISC = 0
    ALLMULTI = 1
    ALLUNI = 2
    NOMULTI = 3
    NOUNI = 4
    NOBCAST = 5


class Control(IntEnum):
    """Classes of commands on the control queue."""

    RX = 0
    MAC = 1
    VLAN = 2
    ANNOUNCE = 3
    MQ = 4


_MAC_TABLE_SET: Final = 0
_MAC_ADDR_SET: Final = 1
_VLAN_ADD: Final = 0
_VLAN_DEL: Final = 1


class NetDevice(VirtioDevice):
    """Frames are Ethernet frames without FCS. A frame that is in flight when the emulator dies may arrive twice; what
    the control queue set up is set up again.
    """

    device_id: ClassVar[int | None] = 1
    known_features: ClassVar[int] = bits(
        MTU, MAC, MRG_RXBUF, STATUS, CTRL_VQ, CTRL_RX, CTRL_VLAN, CTRL_RX_EXTRA, GUEST_ANNOUNCE, MQ, CTRL_MAC_ADDR,
        SPEED_DUPLEX,
    )  # fmt: skip
    needed_features: ClassVar[dict[int, int]] = dict.fromkeys(
        (CTRL_RX, CTRL_VLAN, CTRL_RX_EXTRA, GUEST_ANNOUNCE, MQ, CTRL_MAC_ADDR), bits(CTRL_VQ)
    )
    arena_pages: ClassVar[int] = 512

    def prepare(self) -> None:
        self._frames: list[deque[bytes]] = []
        self._partial: list[list[bytes]] = []  # for each pair, the buffers of a frame of which more are to come
        self._settings: dict[tuple[int, ...], bytes] = {}
        self.dropped = 0
        """Received buffers that held no frame."""

    def start(self) -> None:
        self.mac = self.config_read(0, 6) if self.has(MAC) else bytes(6)
        self.mtu = self.config_number(10, 2) if self.has(MTU) else DEFAULT_MTU
        if self.mtu < 68:
            raise InitialisationFailed(f"mtu {self.mtu} is less than 68")
        announced = self.config_number(8, 2) if self.has(MQ) else 1
        queues = len(self.transport.queues)
        # A pair for each that fits; the control queue follows the last pair the device has, used or not.
        control = 2 * announced
        count = control + 1 if self.has(CTRL_VQ) else control
        if announced < 1 or count > queues:
            raise InitialisationFailed(f"{announced} pairs of virtqueues, the backend announced {queues} virtqueues")
        self.max_pairs = announced
        self.find_queues(count)
        self._control = self.queues[control] if self.has(CTRL_VQ) else None
        for pair in range(announced):
            if pair == len(self._frames):
                self._frames.append(deque())
                self._partial.append([])
                self.queues[2 * pair].on_used = partial(self._received, pair)
                self.queues[2 * pair + 1].on_used = self.queues[2 * pair + 1].free
            self._partial[pair].clear()

    def started(self) -> None:
        for pair in range(self.max_pairs):
            if len(self.queues[2 * pair]) == 0:
                self._fill(pair)
        for (kind, command, *_), data in list(self._settings.items()):
            self._command(kind, command, data)
        self.mac = self._settings.get((Control.MAC, _MAC_ADDR_SET), self.mac)

    # ---- frames ----

    def send(self, frame: bytes, pair: int = 0, timeout: float | None = None) -> None:
        """Hands a frame to the device; waits only while all buffers are taken. Raises ValueError (length), and what
        `wait` raises.
        """
        if not 14 <= len(frame) <= MAX_FRAME:
            raise ValueError(f"a frame of {len(frame)} bytes; 14 to {MAX_FRAME} are possible")
        queue = self.queues[2 * pair + 1]
        size = _HEADER.size + len(frame)
        queue.reap()
        while (buffer := self._arena.allocate(size)) is None:
            held = len(queue)
            if held == 0:
                raise ValueError(f"a frame of {len(frame)} bytes does not fit into the arena")
            self.wait(queue, partial(self._fewer, queue, held), timeout)
        buffer.memory[: _HEADER.size] = bytes(_HEADER.size)
        buffer.memory[_HEADER.size :] = frame
        queue.submit(Chain([buffer.piece()], [], (buffer,)))

    def flush(self, pair: int = 0, timeout: float | None = None) -> None:
        """Waits until the device took every frame that was sent."""
        queue = self.queues[2 * pair + 1]
        self.wait(queue, lambda: len(queue) == 0, timeout)

    def receive(self, timeout: float, pair: int = 0) -> bytes | None:
        """The next frame; None when none came within `timeout` seconds. Raises what `wait` raises."""
        frames = self._frames[pair]
        if not frames:
            try:
                self.wait(self.queues[2 * pair], lambda: bool(frames), timeout)
            except RequestTimeout:
                return None
        return frames.popleft()

    # ---- configuration ----

    @property
    def link_up(self) -> bool:
        """A device without STATUS always has its link."""
        return not self.has(STATUS) or bool(self.config_number(6, 2) & LINK_UP)

    @property
    def announce_wanted(self) -> bool:
        """The device asks for gratuitous packets; `announced` says that they were sent."""
        return self.has(GUEST_ANNOUNCE) and bool(self.config_number(6, 2) & ANNOUNCE)

    @property
    def speed(self) -> tuple[int, int] | None:
        """(Mbit/s, duplex: 1 full, 0 half); None if the device does not say."""
        if not self.has(SPEED_DUPLEX):
            return None
        data = self.config_read(12, 5)
        speed = int.from_bytes(data[:4], "little")
        return None if speed > MAX_SPEED else (speed, data[4])

    # ---- control queue; each raises Unsupported, ConfigRefused ----

    def set_rx_mode(self, mode: RxMode, on: bool) -> None:
        self.require(CTRL_RX if mode in (RxMode.PROMISC, RxMode.ALLMULTI) else CTRL_RX_EXTRA, "receive modes")
        self._set(Control.RX, mode, bytes([on]))

    def set_mac_table(self, unicast: Iterable[bytes], multicast: Iterable[bytes]) -> None:
        self.require(CTRL_RX, "MAC filter")
        tables = [list(unicast), list(multicast)]
        self._set(Control.MAC, _MAC_TABLE_SET, b"".join(_COUNT.pack(len(table)) + b"".join(table) for table in tables))

    def set_mac(self, mac: bytes) -> None:
        self.require(CTRL_MAC_ADDR, "way to change its MAC address")
        self._set(Control.MAC, _MAC_ADDR_SET, mac)
        self.mac = mac

    def add_vlan(self, vlan: int) -> None:
        self.require(CTRL_VLAN, "VLAN filter")
        self._set(Control.VLAN, _VLAN_ADD, vlan.to_bytes(2, "little"), vlan)

    def remove_vlan(self, vlan: int) -> None:
        self.require(CTRL_VLAN, "VLAN filter")
        self._command(Control.VLAN, _VLAN_DEL, vlan.to_bytes(2, "little"))
        self._settings.pop((Control.VLAN, _VLAN_ADD, vlan), None)

    def announced(self) -> None:
        """Acknowledges `announce_wanted`."""
        self.require(GUEST_ANNOUNCE, "announcements")
        self._command(Control.ANNOUNCE, 0, b"")

    def set_pairs(self, pairs: int) -> None:
        """Uses the first `pairs` pairs of virtqueues; after a reset it is one."""
        self.require(MQ, "second pair of virtqueues")
        self._set(Control.MQ, 0, pairs.to_bytes(2, "little"))

    def _set(self, kind: int, command: int, data: bytes, *key: int) -> None:
        self._command(kind, command, data)
        self._settings[(kind, command, *key)] = data

    def _command(self, kind: int, command: int, data: bytes) -> None:
        if self._control is None:
            raise ConfigRefused("the device lost its control queue")
        buffer = self._arena.allocate(2 + len(data) + 1)
        if buffer is None:
            raise ConfigRefused("no room in the arena for a control command")
        end = 2 + len(data)
        buffer.memory[:] = bytes([kind, command]) + data + b"\xff"
        readable = [buffer.piece(0, 2)] + ([buffer.piece(2, len(data))] if data else [])
        chain = Chain(readable, [buffer.piece(end, 1)], (buffer,))
        self.perform(self._control, chain)
        acknowledged = buffer.memory[end]
        self._control.free(chain)
        if acknowledged != 0:
            raise ConfigRefused(f"control command {kind}.{command} refused ({acknowledged})")

    # ---- receiving ----

    @staticmethod
    def _fewer(queue: RequestQueue, held: int) -> bool:
        return len(queue) < held

    @property
    def _arena(self) -> Arena:
        assert self.transport.arena is not None
        return self.transport.arena

    def _fill(self, pair: int) -> None:
        """Posts receive buffers: a quarter of the arena, shared among the pairs, at most a ring full."""
        queue = self.queues[2 * pair]
        size = RX_BUFFER if self.has(MRG_RXBUF) else -(-(_HEADER.size + ETHERNET + self.mtu) // SECTOR) * SECTOR
        room = self._arena.pages * 4096 // 4 // self.max_pairs
        for _ in range(max(1, min(queue.ring.size, room // size))):
            buffer = self._arena.allocate(size)
            if buffer is None:
                raise InitialisationFailed(f"no room in the arena for receive buffers of {size} bytes")
            queue.submit(Chain([], [buffer.piece()], (buffer,)))

    def _received(self, pair: int, chain: Chain) -> None:
        """Copies a used buffer out, posts it again, and puts a frame together once its last buffer is there."""
        buffer: Buffer = chain.buffers[0]
        data = bytes(buffer.memory[: chain.written or 0])
        self.queues[2 * pair].submit(Chain([], chain.writable, chain.buffers))
        parts = self._partial[pair]
        if not parts and len(data) < _HEADER.size:
            self.dropped += 1  # as Linux does: too short for a frame, or given back unused
            return
        parts.append(data)
        buffers = _HEADER.unpack_from(parts[0])[6] if self.has(MRG_RXBUF) else 1
        if not 1 <= buffers <= self.queues[2 * pair].ring.size:
            parts.clear()
            raise BadAnswer(f"a received frame of {buffers} buffers")
        if len(parts) == buffers:
            self._frames[pair].append(b"".join(parts)[_HEADER.size :])
            parts.clear()
