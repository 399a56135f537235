"""The header of a frame: what the driver says that makes no sense or was not negotiated never reaches the host."""

import pytest

from devices.features import mask
from devices.net_config import (
    F_CSUM,
    F_GUEST_CSUM,
    F_GUEST_ECN,
    F_GUEST_TSO4,
    F_GUEST_TSO6,
    F_HOST_ECN,
    F_HOST_TSO4,
    F_HOST_TSO6,
    OFFLOADS,
)
from devices.net_header import MAX_HEADERS, MIN_GSO_SIZE, HeaderRules
from tests.devices.net_frames import MAC, frame, header, tcp4, tcp6

MTU = 1500
TSO4, TSO6, ECN = 1, 4, 0x80
PAYLOAD = bytes(60000)
ALL = HeaderRules(OFFLOADS, MTU)


def transmitted(data: bytes, *fields: int, rules: HeaderRules = ALL) -> bytes | None:
    return rules.transmitted(header(*fields) + data)


def providers(data: bytes) -> bytes:
    """A tagged frame with a provider's tag (IEEE 802.1ad)."""
    return data[:12] + b"\x88\xa8" + data[14:]


@pytest.mark.parametrize("features", [0, OFFLOADS])
def test_a_whole_frame_leaves_with_an_empty_header(features: int) -> None:
    rules = HeaderRules(features, MTU)
    # What else is in it has no meaning: it is not handed on.
    assert transmitted(frame(), 0xFE, 0, 9, 9, 9, 9, 9, rules=rules) == bytes(12)
    assert transmitted(frame(payload=bytes(MTU)), rules=rules) == bytes(12)
    assert transmitted(frame(payload=bytes(MTU), vlan=3), rules=rules) == bytes(12)
    assert transmitted(providers(frame(payload=bytes(MTU), vlan=3)), rules=rules) == bytes(12)
    assert transmitted(frame(payload=bytes(MTU + 1)), rules=rules) is None
    assert transmitted(frame(payload=bytes(MTU + 1), vlan=3), rules=rules) is None
    assert transmitted(bytes(13), rules=rules) is None


def test_segments_are_bounded_for_a_driver_that_knows_of_no_mtu() -> None:
    rules = HeaderRules(OFFLOADS, 65535, MTU)
    data = tcp4(MAC, PAYLOAD)
    assert transmitted(data, 1, TSO4, 54, MTU - 40, 34, 16, rules=rules) is not None
    assert transmitted(data, 1, TSO4, 54, MTU - 39, 34, 16, rules=rules) is None
    assert transmitted(frame(payload=bytes(9000)), rules=rules) == bytes(12)


def test_a_checksum_is_completed_within_the_frame_only() -> None:
    data = frame(payload=bytes(100))
    assert transmitted(data, 0xFF, 0, 9, 9, 34, 16, 9) == header(1, 0, 0, 0, 34, 16)
    assert transmitted(data, 1, 0, 0, 0, 14, 98) == header(1, 0, 0, 0, 14, 98)
    assert transmitted(data, 1, 0, 0, 0, 112, 0) == header(1, 0, 0, 0, 112, 0)
    for start, offset in ((13, 0), (0, 0), (14, 99), (113, 0), (114, 0), (65535, 0), (14, 65535), (65535, 65535)):
        assert transmitted(data, 1, 0, 0, 0, start, offset) is None
    assert transmitted(frame(vlan=3), 1, 0, 0, 0, 17, 0) is None
    assert transmitted(b"", 1, 0, 0, 0, 0, 0) is None
    assert transmitted(frame(payload=bytes(MTU + 1)), 1, 0, 0, 0, 34, 16) is None


def test_a_checksum_is_not_completed_for_who_did_not_negotiate_it() -> None:
    assert transmitted(frame(payload=bytes(100)), 1, 0, 0, 0, 34, 16, rules=HeaderRules(0, MTU)) is None


@pytest.mark.parametrize(
    ("data", "gso_type", "start"),
    [
        (tcp4(MAC, PAYLOAD), TSO4, 34),
        (tcp4(MAC, PAYLOAD, vlan=5), TSO4, 38),
        (tcp4(MAC, PAYLOAD, options=40), TSO4, 74),
        (tcp6(MAC, PAYLOAD), TSO6, 54),
        (tcp6(MAC, PAYLOAD, extension=b"\6\0" + bytes(6)), TSO6, 62),
        (tcp4(MAC, bytes(65495)), TSO4, 34),
        (tcp4(MAC, bytes(65495), vlan=5), TSO4, 38),
        (providers(tcp4(MAC, bytes(65495), vlan=5)), TSO4, 38),
    ],
)
@pytest.mark.parametrize("ecn", [0, ECN])
def test_a_segmented_frame_leaves_with_the_header_it_needs(data: bytes, gso_type: int, start: int, ecn: int) -> None:
    longest = MTU + 14 + (4 if data[12:14] in (b"\x81\x00", b"\x88\xa8") else 0)
    for gso_size in (MIN_GSO_SIZE, 1000, longest - start - 20):
        for hdr_len in (0, start + 20, min(len(data), 65535)):
            fields = header(1, gso_type | ecn, start + 20, gso_size, start, 16)
            assert transmitted(data, 1, gso_type | ecn, hdr_len, gso_size, start, 16, 7) == fields
    assert transmitted(data, 1, gso_type, 0, longest - start - 20 + 1, start, 16) is None, "segments keep the MTU"


def changed(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


V4, V6 = tcp4(MAC, bytes(3000)), tcp6(MAC, bytes(3000))


@pytest.mark.parametrize(
    ("data", "fields"),
    [
        pytest.param(V4, (0, TSO4, 54, 1000, 34, 16), id="nobody is to make the checksums"),
        pytest.param(V4, (1, TSO4, 54, 0, 34, 16), id="segments of no size"),
        pytest.param(V4, (1, TSO4, 54, MIN_GSO_SIZE - 1, 34, 16), id="a flood of segments"),
        pytest.param(V4, (1, TSO4, 54, 0xFFFF, 34, 16), id="segments longer than the MTU"),
        pytest.param(V4, (1, TSO4, len(V4) + 1, 1000, 34, 16), id="headers longer than the frame"),
        pytest.param(V4, (1, TSO4, 54, 1000, 34, 6), id="the checksum of another protocol"),
        pytest.param(changed(V4, 45, b"\x50"), (1, TSO4, 54, 1000, 33, 16), id="TCP elsewhere"),
        pytest.param(changed(V4, 50, b"\x50"), (1, TSO4, 54, 1000, 38, 16), id="TCP behind options that are not there"),
        pytest.param(V4, (1, TSO6, 54, 1000, 34, 16), id="IPv4 that is said to be IPv6"),
        pytest.param(V4, (1, ECN, 54, 1000, 34, 16), id="ECN of nothing"),
        *(
            pytest.param(V4, (1, kind, 54, 1000, 34, 16), id=f"type {kind}")
            for kind in (2, 3, 5, 0x20, 0x40, 0x83, 0xFF)
        ),
        pytest.param(changed(V4, 14, b"\x65"), (1, TSO4, 54, 1000, 34, 16), id="IPv4 of version 6"),
        pytest.param(changed(V6, 14, b"\x40"), (1, TSO6, 74, 1000, 54, 16), id="IPv6 of version 4"),
        pytest.param(changed(V4, 23, b"\x11"), (1, TSO4, 54, 1000, 34, 16), id="UDP"),
        pytest.param(
            changed(changed(V4, 14, b"\x44"), 42, b"\x50"),
            (1, TSO4, 54, 1000, 30, 16),
            id="an IPv4 header that is too short",
        ),
        pytest.param(changed(V4, 46, b"\x40"), (1, TSO4, 54, 1000, 34, 16), id="a TCP header that is too short"),
        pytest.param(changed(V4, 46, b"\xf0")[:90], (1, TSO4, 54, 8, 34, 16), id="a TCP header that is cut"),
        pytest.param(V4[:53], (1, TSO4, 0, 1000, 34, 16), id="a TCP header that ends with the frame"),
        pytest.param(changed(V4, 12, b"\x88\xa8"), (1, TSO4, 54, 1000, 34, 16), id="no IPv4"),
        pytest.param(changed(V6, 65, b"\x50"), (1, TSO6, 74, 1000, 53, 16), id="TCP within the IPv6 header"),
        pytest.param(V6, (1, TSO4, 74, 1000, 54, 16), id="IPv6 that is said to be IPv4"),
        pytest.param(changed(V6, 12, b"\x88\xa8"), (1, TSO6, 74, 1000, 54, 16), id="no IPv6"),
        pytest.param(
            tcp6(MAC, bytes(3000), extension=bytes(MAX_HEADERS - 73)),
            (1, TSO6, 0, 8, MAX_HEADERS - 19, 16),
            id="headers that are more than their segments",
        ),
        pytest.param(tcp4(MAC, bytes(65495)) + b"x", (1, TSO4, 54, 1000, 34, 16), id="longer than IPv4"),
        pytest.param(frame(payload=b""), (1, TSO4, 0, 8, 14, 16), id="nothing behind Ethernet"),
    ],
)
def test_a_segmented_frame_that_makes_no_sense_is_dropped(data: bytes, fields: tuple[int, ...]) -> None:
    assert transmitted(data, *fields) is None
    assert transmitted(data, *fields, rules=HeaderRules(OFFLOADS, 65535)) is None or fields[3] > MTU


@pytest.mark.parametrize(
    ("bits", "kept"),
    [
        ((), set()),
        ((F_CSUM,), set()),
        ((F_CSUM, F_HOST_TSO4), {TSO4}),
        ((F_CSUM, F_HOST_TSO6), {TSO6}),
        ((F_CSUM, F_HOST_TSO4, F_HOST_ECN), {TSO4, TSO4 | ECN}),
        ((F_CSUM, F_HOST_TSO4, F_HOST_TSO6, F_HOST_ECN), {TSO4, TSO6, TSO4 | ECN, TSO6 | ECN}),
        ((F_GUEST_CSUM, F_GUEST_TSO4, F_GUEST_TSO6, F_GUEST_ECN), set()),
    ],
)
def test_only_negotiated_kinds_of_segments_leave(bits: tuple[int, ...], kept: set[int]) -> None:
    rules = HeaderRules(mask(*bits), MTU)
    for kind in (TSO4, TSO6, TSO4 | ECN, TSO6 | ECN):
        data, start = (V4, 34) if kind & TSO4 else (V6, 54)
        assert (transmitted(data, 1, kind, start + 20, 1000, start, 16, rules=rules) is not None) == (kind in kept)


def received(data: bytes, *fields: int, offloads: int = OFFLOADS) -> bytes | None:
    packet = memoryview(bytearray(header(*fields) + data))
    return bytes(packet[:12]) if HeaderRules(offloads, MTU).received(packet) else None


def test_the_driver_sees_the_hosts_header_with_what_it_negotiated() -> None:
    assert received(V4, 1, TSO4, 54, 1446, 34, 16) == header(1, TSO4, 54, 1446, 34, 16)
    assert received(frame(), 2) == header(2)
    assert received(frame(payload=bytes(100)), 1, 0, 0, 0, 34, 16) == header(1, 0, 0, 0, 34, 16)
    assert received(frame(payload=bytes(MTU + 1)), 2) is None
    assert received(tcp4(MAC, bytes(65495)) + b"x", 1, TSO4, 54, 1446, 34, 16) is None
    assert received(bytes(13), 1, TSO4, 54, 1446, 34, 16) is None


def test_the_driver_sees_nothing_that_it_did_not_negotiate() -> None:
    """Of what was on its way since before it chose; the kernel does not send any more of it."""
    assert received(frame(), 2, offloads=0) == bytes(12), "checked, which is not worth dropping it"
    assert received(frame(payload=bytes(100)), 1, 0, 0, 0, 34, 16, offloads=0) is None
    for bits, kept in (
        ((F_GUEST_CSUM,), set()),
        ((F_GUEST_CSUM, F_GUEST_TSO4), {TSO4}),
        ((F_GUEST_CSUM, F_GUEST_TSO6), {TSO6}),
        ((F_GUEST_CSUM, F_GUEST_TSO6, F_GUEST_ECN), {TSO6, TSO6 | ECN}),
        ((F_CSUM, F_HOST_TSO4, F_HOST_TSO6, F_HOST_ECN), set()),
    ):
        for kind in (TSO4, TSO6, TSO4 | ECN, TSO6 | ECN, 3, 5):
            passes = received(V4, 1, kind, 54, 1446, 34, 16, offloads=mask(*bits)) is not None
            assert passes == (kind in kept)
