"""What a frontend may write into its directory, and what becomes of everything else."""

from __future__ import annotations

from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpp_ring.store import Store
from emulator.frontend_nodes import Channel, NodeError, read_channel, read_state
from emulator.store_paths import State

GOOD = {"version": "1", "fe-to-be-ref": "8", "be-to-fe-ref": "9", "event-channel": "3"}
BAD_NUMBERS = [
    "",
    " 1",
    "1 ",
    "+1",
    "-1",
    "0x1",
    "1.0",
    "1e3",
    "4294967296",
    "9" * 4000,
    "\u0661",
    "1\x00",
    "one",
    "\ufffd",
]


class Nodes(dict[str, str]):
    """A frontend's directory."""

    def read_optional(self, path: str) -> str | None:
        return self.get(path.removeprefix("/d/"))


def channel(nodes: dict[str, str], queues: int = 1) -> Channel:
    return read_channel(cast(Store, Nodes(nodes)), "/d", queues)


def test_the_least_a_frontend_writes() -> None:
    assert channel(GOOD, 2) == Channel(8, 9, 3, (None, None), None)


def test_everything_a_frontend_can_write() -> None:
    nodes = GOOD | {"queue-1/event-channel": "5", "queue-2/event-channel": "6", "arena-ref": "70", "arena-pages": "64"}
    assert channel(nodes, 2) == Channel(8, 9, 3, (None, 5), (70, 64))


@pytest.mark.parametrize("node", GOOD)
def test_what_is_missing_is_named(node: str) -> None:
    with pytest.raises(NodeError, match=f"^{node}: missing"):
        channel({name: value for name, value in GOOD.items() if name != node})


@pytest.mark.parametrize("node", [*GOOD, "queue-0/event-channel", "arena-ref", "arena-pages"])
@pytest.mark.parametrize("value", BAD_NUMBERS)
def test_what_is_no_number_is_named_and_quoted_shortly(node: str, value: str) -> None:
    with pytest.raises(NodeError, match=f"^{node}: ") as refusal:
        channel(GOOD | {"arena-ref": "1", "arena-pages": "1"} | {node: value})
    assert len(str(refusal.value)) < 400
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize(
    ("node", "value"), [("version", "0"), ("version", "2"), ("arena-pages", "0"), ("arena-pages", "65537")]
)
def test_what_is_out_of_range_is_refused(node: str, value: str) -> None:
    with pytest.raises(NodeError, match=f"^{node}: "):
        channel(GOOD | {"arena-ref": "1", node: value})


def test_an_arena_needs_both_of_its_nodes_and_none_is_none() -> None:
    with pytest.raises(NodeError, match=r"^arena-ref: missing"):
        channel(GOOD | {"arena-pages": "1"})
    assert channel(GOOD | {"arena-ref": "1"}).arena is None


def test_states_are_numbers_of_xenbus() -> None:
    for state in State:
        assert read_state(cast(Store, Nodes({"state": str(int(state))})), "/d") is state
    assert read_state(cast(Store, Nodes()), "/d") is State.UNKNOWN
    for value in [*BAD_NUMBERS, "9"]:
        with pytest.raises(NodeError, match=r"^state: "):
            read_state(cast(Store, Nodes({"state": value})), "/d")


@given(st.dictionaries(st.sampled_from([*GOOD, "queue-0/event-channel", "arena-ref", "arena-pages"]), st.text()))
def test_no_text_at_all_does_more_than_be_refused(nodes: dict[str, str]) -> None:
    try:
        result = channel(GOOD | nodes)
    except NodeError:
        return
    assert 0 <= result.fe_to_be_ref <= 0xFFFFFFFF
