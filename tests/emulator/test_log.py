"""One line an event, and no more of them than a person can read, whoever causes them."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from emulator import log


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What the process would have written, with logging as it was afterwards."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    log.configure()
    yield stream
    root.handlers[:], root.level = before
    logging.raiseExceptions = True


def test_a_line_names_who_says_it(output: io.StringIO) -> None:
    logging.getLogger("virtio-dm domain 1 device 0").info("ready: %s", "rng")
    logging.getLogger("other").debug("not of interest")
    assert output.getvalue() == "virtio-dm domain 1 device 0: ready: rng\n"


def flood(name: str, count: int) -> None:
    logger = logging.getLogger(name)
    for number in range(count):
        logger.warning("bad request %d", number)


def test_a_call_site_is_heard_five_times_in_ten_seconds(output: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("emulator.log.time.monotonic", lambda: now)
    flood("one", 1000)
    flood("two", 3)  # another device has a budget of its own
    assert len(output.getvalue().splitlines()) == log.BURST + 3
    now += log.WINDOW_SECONDS
    flood("one", 1)
    assert output.getvalue().splitlines()[-1] == "one: bad request 0 (995 more like this were left out)"


def test_standard_error_that_is_closed_is_no_reason_to_fail(output: io.StringIO) -> None:
    output.close()
    logging.getLogger("x").error("nobody reads this")


def test_a_crash_is_reported_with_its_traceback(output: io.StringIO) -> None:
    try:
        raise ValueError("oops")
    except ValueError:
        log.report_crash()
    assert "Traceback" in output.getvalue()
    assert "oops" in output.getvalue()
