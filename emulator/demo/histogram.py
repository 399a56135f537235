"""Latencies as a histogram of text: buckets of equal width on a logarithmic axis."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from cpp_ring import LatencyRecorder

_STEPS_PER_OCTAVE: Final = 8
_MOST_ROWS: Final = 16
_SHARE_SHOWN: Final = 99.9
_EIGHTHS: Final = "▏▎▍▌▋▊▉█"


@dataclass(slots=True)
class Bucket:
    """Latencies of at most `upper` ns; None: all longer ones."""

    upper: int | None
    count: int = 0
    mark: str = ""


def buckets(recorder: LatencyRecorder) -> list[Bucket]:
    """From the shortest to p99.9, each wider than the one before by one factor; then one for the rest.

    `mark` names p50 and p99 in the buckets that hold them. Empty if nothing was recorded.
    """
    if not recorder.count:
        return []
    low, high = max(1, recorder.min), max(1, recorder.percentile(_SHARE_SHOWN))
    octaves = max(0.0, math.log2(high / low))
    rows = min(_MOST_ROWS, max(1, math.ceil(octaves * _STEPS_PER_OCTAVE)))
    result = [Bucket(round(low * 2 ** (octaves * (row + 1) / rows))) for row in range(rows)]
    result[-1].upper = high
    result.append(Bucket(None))
    for upper, count in zip(*recorder.buckets(), strict=True):
        _holder(result, int(upper)).count += int(count)
    for percent in (50, 99):
        holder = _holder(result, recorder.percentile(percent))
        holder.mark = f"{holder.mark}, p{percent}".lstrip(", ")
    return result


def bar(count: int, most: int, width: int, *, plain: bool = False) -> str:
    """A bar `count / most` of `width` characters long, the least count above 0 still seen; `plain`: in ASCII."""
    length = width * count / most if most else 0.0
    if plain:
        return "#" * (max(1, round(length)) if count else 0)
    whole = int(length)
    eighths = round((length - whole) * 8)
    if count and not whole:
        eighths = max(1, eighths)
    return "█" * whole + (_EIGHTHS[eighths - 1] if eighths else "")


def _holder(rows: list[Bucket], latency: int) -> Bucket:
    return next(row for row in rows if row.upper is None or latency <= row.upper)
