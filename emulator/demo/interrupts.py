"""Signals that end the demo, kept away from the moments that must not be cut short."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """The signal `number` came."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Interrupts:
    """While in the context the first of SIGNALS raises Interrupted in the main thread; later ones do nothing."""

    def __init__(self) -> None:
        self._before: dict[signal.Signals, object] = {}
        self._held = 0
        self._seen: int | None = None
        self._raised = False

    def __enter__(self) -> Interrupts:
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, shell jobs
                self._before[number] = signal.signal(number, self._signalled)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before.clear()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """A signal that comes in here raises at the end of it: a process that was started is noted before."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        self._raise_if_due()

    def hold(self) -> None:
        """From here on nothing raises: what is left is cleaning up, and its time is bounded."""
        self._held += 1

    def _signalled(self, number: int, _frame: FrameType | None) -> None:
        self._seen = self._seen or number
        self._raise_if_due()

    def _raise_if_due(self) -> None:
        if self._seen and not self._raised and not self._held:
            self._raised = True
            raise Interrupted(self._seen)
