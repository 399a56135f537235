"""The spin budget of a device's thread, as people write it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

MAX_POLL_US = 1_000_000
DEFAULT_US = 50.0
LONGEST_DEFAULT_US = 2000.0
WAKES = 16


@dataclass(frozen=True, slots=True)
class Polling:
    """How long a device's thread spins after its last work, in microseconds: `least`, and up to `most` while the driver
    is busy. 0 never, infinity always.
    """

    least: float
    most: float

    @classmethod
    def fixed(cls, us: float) -> Self:
        return cls(us, us)

    @classmethod
    def default(cls) -> Self:
        """50 us, and while the driver is busy as long as it takes on this machine to be woken 16 times, up to 2 ms
        (docs/design/011).
        """
        from cpp_ring import measure_wake_us  # not at the top: those who only read the words pay for no engine

        return cls(DEFAULT_US, min(max(DEFAULT_US, WAKES * measure_wake_us()), LONGEST_DEFAULT_US))


def parse_poll(text: str) -> float:
    """Microseconds, or `always` (infinity). Raises ValueError."""
    if text == "always":
        return math.inf
    if text.isascii() and text.isdigit() and len(text) < 10 and int(text) <= MAX_POLL_US:
        return float(text)
    raise ValueError(f"{text!r} is neither a number of microseconds up to {MAX_POLL_US} nor always")


def format_poll(spin_us: float) -> str:
    """What `parse_poll` reads as `spin_us`."""
    return "always" if math.isinf(spin_us) else str(int(spin_us))
