"""Runs the steps one after the other, up to the first that fails."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence

from emulator.demo.screen import Result, Screen
from emulator.demo.steps import Demo, NotAsClaimed, Step
from emulator.exit_codes import Failure
from emulator.guest_process import GuestFailed

EXPECTED = (NotAsClaimed, GuestFailed, Failure, OSError, subprocess.SubprocessError)
"""What is told in one line; anything else is a fault of the demo and keeps its traceback."""


def play(demo: Demo, steps: Sequence[Step], screen: Screen) -> list[Result]:
    """A result for each step that was begun; the last one tells why if the demo ended early."""
    results: list[Result] = []
    for step in steps:
        started = time.monotonic()
        try:
            with screen.running(step.title) as progress:
                text, ok = step.run(demo, progress), True
        except EXPECTED as error:
            text, ok = f"{error}", False
        seconds = time.monotonic() - started
        screen.ended(step.title, ok, seconds)
        results.append(Result(step.name, text, ok, seconds))
        if not ok:
            break
    return results
