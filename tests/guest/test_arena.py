"""Buffers never overlap, are aligned, and what is freed is there again."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpp_ring import Hypervisor, SharedPages
from guest.arena import PAGE, SECTOR, Arena, Buffer

BASE = 1 << 63 | 0x1234 << 12


class FakePages:
    """Granted pages without a hypervisor."""

    def __init__(self, pages: int) -> None:
        self.first_ref = 0x1234
        self.pages = pages
        self.memory = memoryview(bytearray(pages * PAGE))

    def address(self, offset: int = 0) -> int:
        return BASE + offset


class FakeHypervisor:
    def share(self, domid: int, pages: int) -> SharedPages:
        return cast(SharedPages, FakePages(pages))


def arena_of(pages: int) -> Arena:
    return Arena(cast(Hypervisor, FakeHypervisor()), 0, pages)


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("take"), st.integers(1, 3 * PAGE), st.sampled_from([SECTOR, PAGE])),
            st.tuples(st.just("free"), st.integers(0, 100), st.just(0)),
        ),
        max_size=60,
    )
)
def test_buffers_never_overlap_and_everything_comes_back(steps: list[tuple[str, int, int]]) -> None:
    arena = arena_of(8)
    taken: list[Buffer] = []
    for step, number, align in steps:
        if step == "take":
            buffer = arena.allocate(number, align)
            if buffer is not None:
                assert len(buffer.memory) == number
                assert buffer.address == BASE + buffer.offset
                assert buffer.offset % align == 0
                assert buffer.offset + number <= 8 * PAGE
                ranges = sorted((other.offset, other.offset + len(other.memory)) for other in [*taken, buffer])
                assert all(end <= start for (_, end), (start, _) in pairwise(ranges))
                taken.append(buffer)
        elif taken:
            arena.free(taken.pop(number % len(taken)))
    for buffer in taken:
        arena.free(buffer)
    assert arena.free_bytes == 8 * PAGE
    assert arena.allocate(8 * PAGE, PAGE) is not None


def test_an_arena_that_is_full_says_so() -> None:
    arena = arena_of(1)
    buffers = [arena.allocate(1) for _ in range(PAGE // SECTOR)]
    assert None not in buffers
    assert arena.allocate(1) is None


def test_a_buffer_freed_twice_is_an_error() -> None:
    arena = arena_of(1)
    buffer = arena.allocate(100)
    assert buffer is not None
    arena.free(buffer)
    with pytest.raises(KeyError):
        arena.free(buffer)


def test_a_piece_is_a_part_of_the_buffer() -> None:
    buffer = arena_of(1).allocate(100)
    assert buffer is not None
    assert buffer.piece() == (buffer.address, 100)
    assert buffer.piece(16) == (buffer.address + 16, 84)
    assert buffer.piece(16, 1) == (buffer.address + 16, 1)
