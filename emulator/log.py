"""Logging to standard error, limited per call site so that no guest can flood it (XSA-157)."""

from __future__ import annotations

import logging
import sys
import time

BURST = 5
WINDOW_SECONDS = 10.0


class RateLimit(logging.Filter):
    """Lets `burst` records of one call site and logger through per `window` seconds; counts the others.

    The first record of the next window says how many were left out.
    """

    def __init__(self, burst: int = BURST, window: float = WINDOW_SECONDS) -> None:
        super().__init__()
        self._burst = burst
        self._window = window
        self._sites: dict[tuple[str, str, int], list[float]] = {}  # site -> [start of window, passed, left out]

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        site = self._sites.setdefault((record.name, record.pathname, record.lineno), [now, 0, 0])
        if now - site[0] >= self._window:
            if site[2]:
                record.msg = f"{record.getMessage()} ({site[2]:.0f} more like this were left out)"
                record.args = None
            site[:] = [now, 0, 0]
        if site[1] >= self._burst:
            site[2] += 1
            return False
        site[1] += 1
        return True


def report_crash() -> None:
    """The exception that is being handled, as a fault of our own."""
    logging.getLogger("virtio-dm").exception("internal error; please report it with this traceback")


def configure(level: str = "info") -> None:
    """Sends the log of this process to standard error, one line an event. `level`: debug, info, warning or error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    handler.addFilter(RateLimit())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.raiseExceptions = False  # a full disk or a closed pipe behind standard error is no reason to fail
