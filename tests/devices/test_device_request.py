"""Requests: two cursors that never leave the guest's buffers, and a used.len that is always true."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.errors import RequestError
from devices.request import Hold, Request, zero


def make(readable: bytes = b"", *sizes: int) -> tuple[Request, list[bytearray]]:
    memory = [bytearray(b"\xa5" * size) for size in sizes]
    return Request(3, 17, readable, [memoryview(part) for part in memory]), memory


def test_reading_moves_a_cursor() -> None:
    request, _ = make(b"abcdef")
    assert (request.read(2), request.remaining, request.read(4), request.remaining) == (b"ab", 4, b"cdef", 0)
    assert request.read(0) == b""


def test_reading_past_the_end_is_the_drivers_fault_and_moves_nothing() -> None:
    request, _ = make(b"abc")
    with pytest.raises(RequestError, match="4 bytes to be read at 0, the request has 3"):
        request.read(4)
    assert request.read(3) == b"abc"


@given(sizes=st.lists(st.integers(0, 40), max_size=6), steps=st.lists(st.integers(0, 60), max_size=8))
def test_writes_land_in_order_and_never_beyond(sizes: list[int], steps: list[int]) -> None:
    request, memory = make(b"", *sizes)
    total = sum(sizes)
    assert request.writable_bytes == total
    expected = bytearray(b"\xa5" * total)
    at = 0
    for number, step in enumerate(steps, start=1):
        data = bytes([number]) * step
        if at + step > total:
            with pytest.raises(RequestError):
                request.write(data)
        else:
            request.write(data)
            expected[at : at + step] = data
            at += step
        assert request.written == at
        assert request.room == total - at
    assert b"".join(memory) == expected


@given(sizes=st.lists(st.integers(0, 40), max_size=6), steps=st.lists(st.integers(0, 60), max_size=8))
def test_reserved_views_are_the_next_bytes_and_never_empty(sizes: list[int], steps: list[int]) -> None:
    request, memory = make(b"", *sizes)
    at = 0
    for step in steps:
        if at + step > sum(sizes):
            with pytest.raises(RequestError):
                request.reserve(step)
            continue
        views = request.reserve(step)
        assert all(len(view) for view in views)
        assert sum(map(len, views)) == step
        for view in views:
            view[:] = b"\x01" * len(view)
        at += step
        assert b"".join(memory) == b"\x01" * at + b"\xa5" * (sum(sizes) - at)


@given(sizes=st.lists(st.integers(0, 300), min_size=1, max_size=5), start=st.integers(0, 400))
def test_write_last_zeroes_the_gap_before_it(sizes: list[int], start: int) -> None:
    request, memory = make(b"", *sizes)
    total = sum(sizes)
    if start >= total:
        request.write(b"d" * min(start, total))
        with pytest.raises(RequestError):
            request.write_last(b"S")
        return
    request.write(b"d" * start)
    request.write_last(b"S")
    assert b"".join(memory) == b"d" * start + bytes(total - start - 1) + b"S"
    assert request.written == total


def test_a_second_write_to_a_full_buffer_is_refused() -> None:
    request, memory = make(b"", 8)
    request.write(b"12345678")
    for size in (1, 8):
        with pytest.raises(RequestError, match="the request takes 8"):
            request.write(b"x" * size)
    assert memory == [bytearray(b"12345678")]


def test_zero_fills_more_than_one_chunk() -> None:
    memory = bytearray(b"\xa5" * 200_000)
    zero([memoryview(memory)])
    assert memory == bytes(200_000)


def test_hold_is_the_marker_handlers_return() -> None:
    assert make()[0].hold() is Hold.HELD


def test_repr_tells_sizes_not_contents() -> None:
    assert repr(make(b"secret", 3, 4)[0]) == "Request(queue=3, head=17, 6 readable, 7 writable)"
