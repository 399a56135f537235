"""The event loop of the main thread: file descriptors, timers, signals, and calls from other threads."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import selectors
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

Callback = Callable[[], None]


class Timer:
    """A call that is due later, until `cancel`."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callback) -> None:
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        self.callback = None


class EventLoop:
    """Runs callbacks one at a time in the thread that calls `run`. All but `post` are for that thread."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._take_posted)
        self._posted: deque[Callback] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._before_sleep: Callable[[], bool] | None = None
        self._stopped = False
        self._closed = False
        # Between `close` and the rest of a `post`, whose callback may have brought `close` about. A signal handler may
        # post in the midst of either, in the thread that holds it.
        self._closing = threading.RLock()

    def close(self) -> None:
        with self._closing:
            self._closed = True
            self._selector.close()
            os.close(self._wake_read)
            os.close(self._wake_write)

    def watch(self, fd: int, callback: Callback) -> None:
        """Calls `callback` whenever `fd` is readable."""
        self._selector.register(fd, selectors.EVENT_READ, callback)

    def unwatch(self, fd: int) -> None:
        self._selector.unregister(fd)

    def call_later(self, seconds: float, callback: Callback) -> Timer:
        timer = Timer(callback)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), timer))
        return timer

    def before_sleep(self, callback: Callable[[], bool] | None) -> None:
        """Calls `callback` before each sleep; if it returns True there is no sleep this time. None: no more."""
        self._before_sleep = callback

    def post(self, callback: Callback) -> None:
        """Calls `callback` in the thread of the loop, if it still runs. From any thread, and from signal handlers."""
        self._posted.append(callback)
        with self._closing, contextlib.suppress(BlockingIOError):  # a full pipe wakes as well
            if not self._closed:
                os.write(self._wake_write, b"\0")

    def stop(self) -> None:
        """Makes `run` return after the present callback, for good."""
        self._stopped = True

    def run(self) -> None:
        while not self._stopped:
            self._run_timers()
            # Last of all: what the callbacks before it have left, it has to see before there is a sleep.
            busy = self._before_sleep is not None and self._before_sleep()
            for key, _ in self._selector.select(0 if busy or self._stopped else self._until_next_timer()):
                if not self._stopped and key.fd in self._selector.get_map():
                    key.data()

    @contextlib.contextmanager
    def signals(self, callback: Callable[[int], None], *numbers: int) -> Iterator[None]:
        """Calls `callback(number)` for these signals while in the context; then restores what was there."""
        before = {number: signal.getsignal(number) for number in numbers}
        taken = [number for number, handler in before.items() if handler is not signal.SIG_IGN]  # nohup, shell jobs
        for number in taken:
            signal.signal(number, lambda number, _: callback(number))
        try:
            yield
        finally:
            for number in taken:
                signal.signal(number, before[number])

    def _run_timers(self) -> None:
        while self._timers and not self._stopped:
            due, _, timer = self._timers[0]
            if timer.callback is not None and due > time.monotonic():
                return
            heapq.heappop(self._timers)
            if timer.callback is not None:
                timer.callback()

    def _until_next_timer(self) -> float | None:
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _take_posted(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)
        # What is posted meanwhile has its own wake-up: no caller can keep the loop here.
        for _ in range(len(self._posted)):
            if self._stopped:
                return
            self._posted.popleft()()
