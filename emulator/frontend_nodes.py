"""What a frontend wrote into its directory of the store: untrusted, checked here and nowhere else (XSA-349)."""

from __future__ import annotations

from dataclasses import dataclass

from cpp_ring.store import Store
from cpp_ring.store_values import parse_u32
from emulator.store_paths import State

PROTOCOL_VERSION = 1
MAX_ARENA_PAGES = 32768
"""Half of what a device maps at most: rings and buffers outside the arena find room, too."""


@dataclass(frozen=True, slots=True)
class Channel:
    """What the frontend wrote into its directory, checked."""

    fe_to_be_ref: int
    be_to_fe_ref: int
    event_channel: int
    queue_event_channels: tuple[int | None, ...]
    arena: tuple[int, int] | None


class NodeError(ValueError):
    """A node is missing or nonsense. One line that names it and quotes no more than a few characters of it."""


def read_state(store: Store, directory: str) -> State:
    """The frontend's xenbus state; UNKNOWN when it has none. Raises NodeError."""
    text = store.read_optional(f"{directory}/state")
    return State.UNKNOWN if text is None else State(_number("state", text, maximum=State.RECONFIGURED))


def read_channel(store: Store, directory: str, queues: int) -> Channel:
    """What it takes to connect to a device of that many virtqueues. Raises NodeError."""

    def number(node: str, *, minimum: int = 0, maximum: int = 0xFFFFFFFF) -> int | None:
        text = store.read_optional(f"{directory}/{node}")
        return None if text is None else _number(node, text, minimum, maximum)

    def required(node: str, *, minimum: int = 0, maximum: int = 0xFFFFFFFF) -> int:
        value = number(node, minimum=minimum, maximum=maximum)
        if value is None:
            raise NodeError(f"{node}: missing")
        return value

    required("version", minimum=PROTOCOL_VERSION, maximum=PROTOCOL_VERSION)
    arena_pages = number("arena-pages", minimum=1, maximum=MAX_ARENA_PAGES)
    return Channel(
        fe_to_be_ref=required("fe-to-be-ref"),
        be_to_fe_ref=required("be-to-fe-ref"),
        event_channel=required("event-channel"),
        queue_event_channels=tuple(number(f"queue-{index}/event-channel") for index in range(queues)),
        arena=None if arena_pages is None else (required("arena-ref"), arena_pages),
    )


def _number(node: str, text: str, minimum: int = 0, maximum: int = 0xFFFFFFFF) -> int:
    try:
        return parse_u32(text, maximum, minimum)
    except ValueError as error:
        raise NodeError(f"{node}: {error}") from None
