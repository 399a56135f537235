"""Which received frames reach the driver (virtio 1.3 sections 5.1.6.5.1 to 5.1.6.5.3)."""

from __future__ import annotations

from collections.abc import Collection

MAX_ADDRESSES = 64  # of each kind; with more, the filter lets all of that kind through
MAX_VLAN = 4095

_BROADCAST = b"\xff" * 6
_VLAN_TAG = b"\x81\x00"


class ReceiveFilter:
    """The receive filter of one activation of a device; its state is what the control queue sets.

    mac            the driver's own address; None while it is not known, then every unicast frame passes
    by_address     whether frames are filtered by destination at all
    vlans          VLAN ids that pass; None: all do
    """

    def __init__(self, *, mac: bytes | None, by_address: bool, by_vlan: bool) -> None:
        self.mac = mac
        self.by_address = by_address
        self.vlans: set[int] | None = set() if by_vlan else None
        self.promisc = False
        self.allmulti = False
        self.alluni = False
        self.nomulti = False
        self.nouni = False
        self.nobcast = False
        # None: more than MAX_ADDRESSES were set.
        self._unicast: frozenset[bytes] | None = frozenset()
        self._multicast: frozenset[bytes] | None = frozenset()

    def set_table(self, unicast: Collection[bytes], multicast: Collection[bytes]) -> None:
        """Replaces the MAC filtering table."""
        self._unicast = frozenset(unicast) if len(unicast) <= MAX_ADDRESSES else None
        self._multicast = frozenset(multicast) if len(multicast) <= MAX_ADDRESSES else None

    def accepts(self, frame: bytes) -> bool:
        """Whether an Ethernet frame of 14 bytes or more is for the driver."""
        if self.promisc:
            return True
        tagged = frame[12:14] == _VLAN_TAG
        if tagged and self.vlans is not None and int.from_bytes(frame[14:16], "big") & MAX_VLAN not in self.vlans:
            return False
        if not self.by_address:
            return True
        destination = frame[:6]
        if destination == _BROADCAST:
            return not self.nobcast
        if destination[0] & 1:
            return not self.nomulti and (self.allmulti or self._multicast is None or destination in self._multicast)
        if self.nouni:
            return False
        known = self.alluni or self.mac is None or self._unicast is None
        return known or destination == self.mac or (self._unicast is not None and destination in self._unicast)
