"""struct virtio_net_hdr: what of it goes to the host, and what to the driver (virtio 1.3 sections 5.1.6.2, 5.1.6.4)."""

from __future__ import annotations

import struct

from devices.features import has
from devices.net_config import (
    F_CSUM,
    F_GUEST_CSUM,
    F_GUEST_ECN,
    F_GUEST_TSO4,
    F_GUEST_TSO6,
    F_HOST_ECN,
    F_HOST_TSO4,
    F_HOST_TSO6,
)

HEADER = struct.Struct("<BBHHHHH")  # flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers
HEADER_BYTES = HEADER.size
PLAIN = bytes(HEADER_BYTES)
"""Of a frame that is whole, its checksums included."""
NUM_BUFFERS = slice(10, 12)

NEEDS_CSUM = 1

GSO_NONE = 0
GSO_TCPV4 = 1
GSO_TCPV6 = 4
GSO_ECN = 0x80

ETHERNET_BYTES = 14
MAX_MTU = 65535
MAX_SEGMENTED = ETHERNET_BYTES + MAX_MTU
_TAGS = (b"\x81\x00", b"\x88\xa8")
"""EtherTypes of IEEE 802.1Q tags, a customer's and a provider's."""
_TAG_BYTES = 4

# TCP is the one protocol that is segmented. EtherType and version of what carries it:
_IPV4 = (b"\x08\x00", 4)
_IPV6 = (b"\x86\xdd", 6)
_IPV4_BYTES = 20
_IPV4_PROTOCOL = 9
_IPV6_BYTES = 40
_TCP = 6
_TCP_BYTES = 20
_TCP_LENGTH = 12  # in words of four bytes, in the upper half of this byte
_TCP_CSUM = 16
# Bounds on what the host makes of one frame, its headers being copied for each segment: no segments smaller than Linux
# makes them (TCP_MIN_GSO_SIZE), no more headers than IPv6 and TCP have with all their options and some extensions.
MIN_GSO_SIZE = 8
MAX_HEADERS = 256


class HeaderRules:
    """The rules of one activation.

    features     what the driver negotiated
    max_packet   the MTU as the driver knows it: bounds frames, without their Ethernet header
    max_segment  bounds what frames are segmented into, whatever the driver knows: a larger one would get past the
                 host's own checks to a network card
    """

    def __init__(self, features: int, max_packet: int, max_segment: int = MAX_MTU) -> None:
        self._longest = max_packet + ETHERNET_BYTES
        self._longest_segment = min(max_packet, max_segment) + ETHERNET_BYTES
        self._completes = has(features, F_CSUM)
        self._segments = _gso_types(features, F_HOST_TSO4, F_HOST_TSO6, F_HOST_ECN)
        self.set_received(features)

    def set_received(self, offloads: int) -> None:
        """The driver takes frames with these offloads, a set of VIRTIO_NET_F_GUEST_* bits; others are ignored."""
        self._takes_incomplete = has(offloads, F_GUEST_CSUM)
        self._takes_segments = _gso_types(offloads, F_GUEST_TSO4, F_GUEST_TSO6, F_GUEST_ECN)

    def transmitted(self, packet: bytes) -> bytes | None:
        """The header to hand on with what follows the header in `packet`; None: the frame is to be dropped.

        What is handed on is made of what was checked: the host's kernel sees no byte of the driver's header besides.
        """
        size = len(packet) - HEADER_BYTES
        tag = _tag_bytes(packet)
        longest = self._longest + tag
        flags, gso_type, hdr_len, gso_size, start, offset, _ = HEADER.unpack_from(packet)
        if not flags & NEEDS_CSUM:  # flags that nobody knows are ignored
            # One that is segmented gets new checksums: the driver must ask for them.
            return PLAIN if gso_type == GSO_NONE and ETHERNET_BYTES <= size <= longest else None
        if not self._completes or start < ETHERNET_BYTES + tag or start + offset + 2 > size:
            return None
        if gso_type == GSO_NONE:
            return HEADER.pack(NEEDS_CSUM, GSO_NONE, 0, 0, start, offset, 0) if size <= longest else None
        if gso_type not in self._segments or gso_size < MIN_GSO_SIZE or hdr_len > size or offset != _TCP_CSUM:
            return None
        headers = _tcp_headers(packet, tag, gso_type & ~GSO_ECN, start)
        if not 0 < headers <= min(size, MAX_HEADERS) or size > MAX_SEGMENTED + tag:
            return None
        if headers + gso_size > self._longest_segment + tag:
            return None
        # The driver's hdr_len is a hint at best; this one is right.
        return HEADER.pack(NEEDS_CSUM, gso_type, headers, gso_size, start, offset, 0)

    def received(self, packet: memoryview) -> bool:
        """Whether the driver may see what came from the host, header first; makes the header what it may see.

        It may have been on its way since before the driver chose its offloads.
        """
        size = len(packet) - HEADER_BYTES
        tag = _tag_bytes(packet)
        flags, gso_type = packet[0], packet[1]
        if gso_type != GSO_NONE:
            return gso_type in self._takes_segments and ETHERNET_BYTES <= size <= MAX_SEGMENTED + tag
        if flags and not self._takes_incomplete:
            if flags & NEEDS_CSUM:
                return False
            packet[0] = 0
        return ETHERNET_BYTES <= size <= self._longest + tag


def _tag_bytes(packet: bytes | memoryview) -> int:
    """What a VLAN tag adds to all that follows it."""
    return _TAG_BYTES if packet[24:26] in _TAGS else 0


def _gso_types(features: int, tso4: int, tso6: int, ecn: int) -> frozenset[int]:
    types = {gso_type for gso_type, bit in ((GSO_TCPV4, tso4), (GSO_TCPV6, tso6)) if has(features, bit)}
    return frozenset(types | {each | GSO_ECN for each in types} if has(features, ecn) else types)


def _tcp_headers(packet: bytes, tag: int, gso_type: int, start: int) -> int:
    """Bytes of all headers of a frame whose TCP header is at `start`; 0 if they are not what `gso_type` says.

    Its first 18 bytes, up to the checksum, are there; all of it may be not.
    """
    network = HEADER_BYTES + ETHERNET_BYTES + tag
    transport = HEADER_BYTES + start
    kind = packet[network - 2 : network], packet[network] >> 4
    if gso_type == GSO_TCPV4:
        length = (packet[network] & 15) * 4
        if kind != _IPV4 or packet[network + _IPV4_PROTOCOL] != _TCP:
            return 0
        if length < _IPV4_BYTES or transport != network + length:
            return 0
    elif kind != _IPV6 or transport < network + _IPV6_BYTES:  # extension headers may be in between
        return 0
    length = (packet[transport + _TCP_LENGTH] >> 4) * 4
    return start + length if length >= _TCP_BYTES else 0
