"""The bytes on the wire are those of docs/protocol.md section 2, and an answer that is not one is refused."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest import messages
from guest.errors import BadAnswer

U32 = st.integers(0, 0xFFFFFFFF)
U64 = st.integers(0, 0xFFFFFFFFFFFFFFFF)

HEADER = (Path(__file__).parents[2] / "protocol" / "virtio_msg_xen.h").read_text()


def test_message_ids_are_those_of_the_protocol_header() -> None:
    ids = re.findall(r"VMSG_((?:GET|SET|RESET)_\w+) = (0x[0-9a-f]+)", HEADER)
    assert len(ids) == 11
    assert {name: getattr(messages, name) for name, _ in ids} == {name: int(number, 16) for name, number in ids}
    limit = re.search(r"VMSG_MAX_CONFIG_DATA (\d+)", HEADER)
    assert limit is not None
    assert int(limit[1]) == messages.MAX_CONFIG_DATA


def test_requests_have_the_bytes_of_the_table() -> None:
    assert messages.get_features(1, 2) == bytes.fromhex("01000000 02000000")
    assert messages.set_features(0, 2, 1 << 32 | 6) == bytes.fromhex("00000000 02000000 06000000 01000000")
    assert messages.get_config(16, 4) == bytes.fromhex("10000000 04000000")
    assert messages.set_config(7, 32, b"\x01") == bytes.fromhex("07000000 20000000 01000000 01")
    assert messages.word(3) == bytes.fromhex("03000000")
    assert messages.set_vqueue(1, 128, 1 << 63 | 0x1000, 1 << 63 | 0x2000, 1 << 63 | 0x3000) == bytes.fromhex(
        "01000000 00000000 80000000 00000000 0010000000000080 0020000000000080 0030000000000080"
    )


def test_device_info_is_read() -> None:
    info = messages.device_info(struct.pack("<5I2H", 2, 0x5853, 64, 60, 1, 0, 0))
    assert info == messages.DeviceInfo(2, 0x5853, 64, 60, 1)


@given(blocks=st.lists(U32, min_size=1, max_size=64), index=U32)
def test_features_of_any_width_survive_the_wire(blocks: list[int], index: int) -> None:
    bits = sum(block << 32 * i for i, block in enumerate(blocks))
    assert messages.features(messages.set_features(index, len(blocks), bits), index, len(blocks)) == bits


@given(generation=U32, offset=U32, data=st.binary(min_size=1, max_size=256))
def test_config_data_survives_the_wire(generation: int, offset: int, data: bytes) -> None:
    answer = messages.config(messages.set_config(generation, offset, data), offset, len(data))
    assert answer == messages.ConfigData(generation, data)


def test_size_0_is_a_refusal_and_an_empty_read_is_not() -> None:
    assert messages.config(struct.pack("<3I", 5, 8, 0), 8, 4) is None
    assert messages.config(struct.pack("<3I", 5, 8, 0), 8, 0) == messages.ConfigData(5, b"")


@given(index=U32, largest=U32, size=U32, areas=st.tuples(U64, U64, U64))
def test_queue_info_is_read(index: int, largest: int, size: int, areas: tuple[int, int, int]) -> None:
    info = messages.vqueue(struct.pack("<4I3Q", index, largest, size, 0, *areas), index)
    assert info == messages.QueueInfo(index, largest, size, *areas)


UNPACKERS: dict[str, Callable[[bytes], Any]] = {
    "device_info": messages.device_info,
    "features": lambda payload: messages.features(payload, 0, 2),
    "config": lambda payload: messages.config(payload, 0, 4),
    "status": lambda payload: messages.status(payload, "GET_DEVICE_STATUS"),
    "vqueue": lambda payload: messages.vqueue(payload, 0),
    "empty": lambda payload: messages.empty(payload, "SET_VQUEUE"),
}


@pytest.mark.parametrize("name", UNPACKERS)
@given(payload=st.binary(max_size=276))
def test_any_bytes_are_an_answer_or_a_bad_answer(name: str, payload: bytes) -> None:
    try:
        UNPACKERS[name](payload)
    except BadAnswer as error:
        assert str(error)  # noqa: PT017


def test_features_that_do_not_fit_are_not_cut() -> None:
    with pytest.raises(OverflowError):
        messages.set_features(0, 1, 1 << 32)
