"""The commands of the virtio-net control queue (virtio 1.3 section 5.1.6.5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from devices.features import has
from devices.net_config import (
    F_CTRL_GUEST_OFFLOADS,
    F_CTRL_MAC_ADDR,
    F_CTRL_RX,
    F_CTRL_RX_EXTRA,
    F_CTRL_VLAN,
    F_GUEST_ANNOUNCE,
    F_MQ,
    FEATURES,
    GUEST_OFFLOADS,
)
from devices.net_filter import MAX_VLAN, ReceiveFilter

OK = 0
ERR = 1

CTRL_RX = 0
CTRL_MAC = 1
CTRL_MAC_TABLE_SET = 0
CTRL_MAC_ADDR_SET = 1
CTRL_VLAN = 2
CTRL_VLAN_ADD = 0
CTRL_VLAN_DEL = 1
CTRL_ANNOUNCE = 3
CTRL_ANNOUNCE_ACK = 0
CTRL_MQ = 4
CTRL_MQ_VQ_PAIRS_SET = 0
CTRL_GUEST_OFFLOADS = 5
CTRL_GUEST_OFFLOADS_SET = 0

# CTRL_RX: the switch of the filter that each command sets.
RX_MODES = ("promisc", "allmulti", "alluni", "nomulti", "nouni", "nobcast")

_RX_EXTRA_FROM = 2


class Controlled(Protocol):
    """What the commands act on, besides the filter."""

    def set_mac(self, mac: bytes) -> None:
        """The driver's own address is `mac` from now on."""

    def acknowledge_announce(self) -> None:
        """The driver has seen VIRTIO_NET_S_ANNOUNCE."""

    def set_pairs(self, pairs: int) -> bool:
        """Uses the first `pairs` queue pairs; False if there are not so many, or `pairs` is 0."""

    def set_guest_offloads(self, offloads: int) -> bool:
        """The driver takes frames with these offloads only, VIRTIO_NET_F_GUEST_* bits; False if the host cannot."""


def is_unicast(mac: bytes) -> bool:
    """Whether a station may have this address: six bytes, not a group, not all zero."""
    return len(mac) == 6 and not mac[0] & 1 and any(mac)


class Control:
    """Executes control commands with the features of one activation. A command it refuses changes nothing."""

    def __init__(self, features: int, receive_filter: ReceiveFilter, device: Controlled) -> None:
        self._features = features
        self._filter = receive_filter
        self._device = device
        self._classes: dict[int, Callable[[int, bytes], bool]] = {
            CTRL_RX: self._rx,
            CTRL_MAC: self._mac,
            CTRL_VLAN: self._vlan,
            CTRL_ANNOUNCE: self._announce,
            CTRL_MQ: self._mq,
            CTRL_GUEST_OFFLOADS: self._guest_offloads,
        }

    def execute(self, command: bytes) -> int:
        """One struct virtio_net_ctrl up to its ack, class and command first. The ack: OK or ERR."""
        if len(command) < 2:
            return ERR
        run = self._classes.get(command[0])
        return OK if run and run(command[1], command[2:]) else ERR

    def _negotiated(self, bit: int) -> bool:
        return has(self._features, bit)

    def _rx(self, command: int, data: bytes) -> bool:
        needed = F_CTRL_RX_EXTRA if command >= _RX_EXTRA_FROM else F_CTRL_RX
        if command >= len(RX_MODES) or not self._negotiated(needed) or data not in (b"\0", b"\1"):
            return False
        setattr(self._filter, RX_MODES[command], data == b"\1")
        return True

    def _mac(self, command: int, data: bytes) -> bool:
        if command == CTRL_MAC_ADDR_SET and self._negotiated(F_CTRL_MAC_ADDR) and is_unicast(data):
            self._device.set_mac(data)
            return True
        if command == CTRL_MAC_TABLE_SET and self._negotiated(F_CTRL_RX):
            unicast = _addresses(data, 0)
            multicast = None if unicast is None else _addresses(data, 4 + 6 * len(unicast))
            if unicast is None or multicast is None or len(data) != 8 + 6 * (len(unicast) + len(multicast)):
                return False
            self._filter.set_table(unicast, multicast)
            return True
        return False

    def _vlan(self, command: int, data: bytes) -> bool:
        vlan = int.from_bytes(data, "little")
        vlans = self._filter.vlans
        if not self._negotiated(F_CTRL_VLAN) or vlans is None or len(data) != 2 or vlan > MAX_VLAN:
            return False
        if command == CTRL_VLAN_ADD:
            vlans.add(vlan)
        elif command == CTRL_VLAN_DEL:
            vlans.discard(vlan)
        else:
            return False
        return True

    def _announce(self, command: int, data: bytes) -> bool:
        if command != CTRL_ANNOUNCE_ACK or data or not self._negotiated(F_GUEST_ANNOUNCE):
            return False
        self._device.acknowledge_announce()
        return True

    def _mq(self, command: int, data: bytes) -> bool:
        if command != CTRL_MQ_VQ_PAIRS_SET or len(data) != 2 or not self._negotiated(F_MQ):
            return False
        return self._device.set_pairs(int.from_bytes(data, "little"))

    def _guest_offloads(self, command: int, data: bytes) -> bool:
        if command != CTRL_GUEST_OFFLOADS_SET or len(data) != 8 or not self._negotiated(F_CTRL_GUEST_OFFLOADS):
            return False
        # The bits are those of the features, and their dependencies are.
        offloads = int.from_bytes(data, "little")
        if offloads & ~(self._features & GUEST_OFFLOADS) or FEATURES.unmet(offloads):
            return False
        return self._device.set_guest_offloads(offloads)


def _addresses(data: bytes, start: int) -> list[bytes] | None:
    """The struct virtio_net_ctrl_mac at `start`; None if `data` ends before it does."""
    count = int.from_bytes(data[start : start + 4], "little")
    first = start + 4
    if len(data) < first or count > (len(data) - first) // 6:
        return None
    return [data[at : at + 6] for at in range(first, first + 6 * count, 6)]
