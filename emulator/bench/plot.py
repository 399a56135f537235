"""The latency CDF of each row as a picture. The only user of matplotlib."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from emulator.bench.rows import Row


def plot(rows: Iterable[Row], path: Path) -> None:
    """Writes the CDFs of the time rows to `path` (format by its suffix). ImportError: matplotlib is not installed."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 6), layout="constrained")
    for row in rows:
        if row.unit != "ns" or not row.recorder.count:
            continue
        upper, count = row.recorder.buckets()
        share = np.cumsum(count) / row.recorder.count
        axes.step(upper, share, where="post", label=row.name)
    axes.set_xscale("log")
    axes.set_xlabel("round trip, ns")
    axes.set_ylabel("share of round trips at most this long")
    axes.set_ylim(0, 1)
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path)
    pyplot.close(figure)
