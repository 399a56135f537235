"""The spin budget of a device's thread, as people write it."""

from __future__ import annotations

import math

MAX_POLL_US = 1_000_000


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
