"""The wait for a driver in the domain, said once: who attached a device sees nothing else of a domain without one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from emulator.loop import EventLoop
from emulator.store_paths import State

NO_DRIVER_SECONDS: Final = 30.0
"""A domU that boots has its driver in less, also in software emulation; a person who waits has not given up yet."""

LEFT: Final = (State.CLOSING, State.CLOSED)
"""The domain let go of the device itself, and knows how to come back."""


class DriverWait:
    """Of one device, whose frontend's state is `node`. `look` calls `follow` with what the store says now."""

    def __init__(self, loop: EventLoop, log: logging.Logger, node: str, look: Callable[[], None]) -> None:
        self._loop = loop
        self._log = log
        self._node = node
        self._look = look
        self._state: State | None = None
        self._armed = False  # one timer at a time, never taken back: a frontend may change its state without end
        self._moved = False  # since the timer was set
        self._said = False

    def follow(self, state: State | None) -> None:
        """The frontend's state, or None while the device does not wait for it to begin."""
        if state in LEFT:
            state = None
        self._moved |= state is not self._state
        self._state = state
        if state is not None and not self._armed and not self._said:
            self._arm()

    def connected(self) -> None:
        """The next wait, after this connection, is one of its own."""
        self._said = False

    def _arm(self) -> None:
        self._armed = True
        self._moved = False
        self._loop.call_later(NO_DRIVER_SECONDS, self._due)

    def _due(self) -> None:
        self._look()  # what came meanwhile may not have been seen: we were stopped, say
        self._armed = False
        if self._state is None or self._said:
            return
        if self._moved:
            self._arm()
            return
        self._said = True
        self._log.warning(
            "the domain has not begun to connect for %g s (%s is %s): %s",
            NO_DRIVER_SECONDS,
            self._node,
            int(self._state) or "missing or 0",
            _advice(self._state),
        )


def _advice(state: State) -> str:
    if state is State.INITIALISING:
        return "load virtio_msg_xen there (or run `python3 -m guest`), or see `dmesg` in it"
    if state is State.UNKNOWN:
        return "detach the device and attach it again"
    return "it is paused, or its driver is gone or hangs: reload that, or see `dmesg` in it"
