"""Automatic receive steering: a flow's frames arrive where its answers leave (virtio 1.3 section 5.1.6.5.6)."""

from __future__ import annotations

from array import array

HEAD_BYTES = 96  # enough for Ethernet with a VLAN tag, IPv4 with all options or IPv6, and ports
_ENTRIES = 4096
_UNKNOWN = 0xFFFF
_VLAN_TAG = b"\x81\x00"
_IPV4 = b"\x08\x00"
_IPV6 = b"\x86\xdd"
_WITH_PORTS = (6, 17)  # TCP, UDP


class FlowTable:
    """Queue pairs by flow, in a table of fixed size: flows that fall on one entry share it."""

    def __init__(self) -> None:
        self._pairs = array("H", [_UNKNOWN]) * _ENTRIES

    def learn(self, frame: memoryview, pair: int) -> None:
        """The driver transmitted `frame` on queue pair `pair`, counted from 0."""
        self._pairs[_flow(bytes(frame[:HEAD_BYTES])) % _ENTRIES] = pair

    def choose(self, frame: bytes, pairs: int) -> int:
        """The queue pair, below `pairs`, for a received frame, of which the first HEAD_BYTES are enough."""
        flow = _flow(frame[:HEAD_BYTES])
        pair = self._pairs[flow % _ENTRIES]
        return pair if pair < pairs else flow % pairs


def _flow(frame: bytes) -> int:
    """A number for the frame's flow, the same in both directions; seeded, so that a guest cannot aim at entries."""
    protocol_at = 16 if frame[12:14] == _VLAN_TAG else 12
    ethertype = frame[protocol_at : protocol_at + 2]
    at = protocol_at + 2
    one, other, transport, ports_at = frame[6:12], frame[0:6], 0, 0
    if ethertype == _IPV4 and len(frame) >= at + 20:
        one, other = frame[at + 12 : at + 16], frame[at + 16 : at + 20]
        fragment = int.from_bytes(frame[at + 6 : at + 8], "big") & 0x3FFF
        transport, ports_at = (0 if fragment else frame[at + 9]), at + (frame[at] & 15) * 4
    elif ethertype == _IPV6 and len(frame) >= at + 40:
        one, other = frame[at + 8 : at + 24], frame[at + 24 : at + 40]
        transport, ports_at = frame[at + 6], at + 40
    if transport in _WITH_PORTS:
        one += frame[ports_at : ports_at + 2]
        other += frame[ports_at + 2 : ports_at + 4]
    return hash((one, other) if one < other else (other, one))
