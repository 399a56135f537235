"""Flows: the same number in both directions, whatever the bytes are, in bounded memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.net_steering import FlowTable
from tests.devices.net_frames import MAC, OTHER, frame, udp4, udp6

ONE, TWO = b"\x0a\0\0\1", b"\x0a\0\0\2"
ONE6, TWO6 = b"\xfe\x80" + bytes(13) + b"\1", b"\xfe\x80" + bytes(13) + b"\2"


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (udp4(OTHER, (ONE, 1000), (TWO, 53)), udp4(MAC, (TWO, 53), (ONE, 1000))),
        (udp6(OTHER, (ONE6, 1000), (TWO6, 53)), udp6(MAC, (TWO6, 53), (ONE6, 1000))),
        (frame(OTHER, MAC), frame(MAC, OTHER)),
        (frame(OTHER, MAC, vlan=5), frame(MAC, OTHER, vlan=5)),
        (udp4(OTHER, (ONE, 1000), (TWO, 53), 0x2000), udp4(MAC, (TWO, 99), (ONE, 7), 0x00B9)),
    ],
)
def test_answers_belong_to_the_flow_of_what_was_sent(sent: bytes, answer: bytes) -> None:
    flows = FlowTable()
    for pair in (3, 0, 2):
        flows.learn(memoryview(sent), pair)
        assert flows.choose(answer, 4) == pair


def test_ports_tell_flows_apart() -> None:
    flows = FlowTable()
    for port in range(64):
        flows.learn(memoryview(udp4(OTHER, (ONE, 1000 + port), (TWO, 53))), port % 4)
    right = sum(flows.choose(udp4(MAC, (TWO, 53), (ONE, 1000 + port)), 4) == port % 4 for port in range(64))
    assert right > 48, "but for the few that share an entry of the table"


def test_unknown_flows_are_spread() -> None:
    flows = FlowTable()
    chosen = {flows.choose(udp4(MAC, (TWO, 53), (ONE, port)), 4) for port in range(200)}
    assert chosen == {0, 1, 2, 3}


@given(st.binary(min_size=14, max_size=120), st.integers(1, 64), st.integers(0, 63))
def test_any_frame_has_a_pair_in_range(data: bytes, pairs: int, learned: int) -> None:
    flows = FlowTable()
    assert 0 <= flows.choose(data, pairs) < pairs
    flows.learn(memoryview(data), learned)
    assert 0 <= flows.choose(data, pairs) < pairs
    assert flows.choose(data, 64) == learned
