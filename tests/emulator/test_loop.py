"""The event loop: descriptors, timers, signals, and calls from other threads, one at a time."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from emulator.loop import EventLoop


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    result = EventLoop()
    yield result
    result.close()


def test_a_readable_descriptor_is_served_until_it_is_unwatched(loop: EventLoop) -> None:
    read, write = os.pipe()
    seen: list[bytes] = []

    def readable() -> None:
        seen.append(os.read(read, 1))
        if len(seen) == 2:
            loop.unwatch(read)
            loop.call_later(0.01, loop.stop)

    loop.watch(read, readable)
    os.write(write, b"abc")
    loop.run()
    assert seen == [b"a", b"b"]
    os.close(read)
    os.close(write)


def test_timers_run_in_order_and_can_be_cancelled(loop: EventLoop) -> None:
    seen: list[int] = []
    loop.call_later(0.02, loop.stop)
    loop.call_later(0.01, lambda: seen.append(2))
    loop.call_later(0.0, lambda: seen.append(1))
    loop.call_later(0.0, lambda: seen.append(3)).cancel()
    loop.run()
    assert seen == [1, 2]


def test_another_thread_wakes_the_loop(loop: EventLoop) -> None:
    thread = threading.Thread(target=lambda: loop.post(loop.stop))
    thread.start()
    loop.run()
    thread.join()


def test_more_posts_than_the_pipe_holds_all_run(loop: EventLoop) -> None:
    seen: list[int] = []
    for number in range(100_000):
        loop.post(lambda number=number: seen.append(number))  # type: ignore[misc]
    loop.post(loop.stop)
    loop.run()
    assert seen == list(range(100_000))


def test_a_post_after_the_end_is_written_into_nobodys_file() -> None:
    loop = EventLoop()
    loop.close()
    # They get the three numbers of the loop's own, and what is written into one arrives at its peer.
    with contextlib.ExitStack() as stack:
        ends = [stack.enter_context(end) for end in (*socket.socketpair(), *socket.socketpair())]
        loop.post(loop.stop)
        for end in ends:
            with pytest.raises(BlockingIOError):
                end.recv(1, socket.MSG_DONTWAIT)


def test_the_end_waits_for_a_thread_that_is_posting(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = EventLoop()
    writing = threading.Event()
    failed: list[OSError] = []
    real = os.write

    def slow(fd: int, data: bytes) -> int:
        writing.set()
        time.sleep(0.05)  # in which an end that did not wait would have come
        return real(fd, data)

    def post() -> None:
        try:
            loop.post(loop.stop)
        except OSError as error:
            failed.append(error)

    monkeypatch.setattr(os, "write", slow)
    thread = threading.Thread(target=post)
    thread.start()
    assert writing.wait(10)
    loop.close()
    thread.join(10)
    assert failed == []


def test_nothing_runs_after_stop(loop: EventLoop) -> None:
    loop.post(loop.stop)
    loop.post(lambda: pytest.fail("ran after stop"))
    loop.run()
    loop.run()  # stopped is stopped


def test_a_signal_reaches_the_loop_and_the_handler_before_is_restored(loop: EventLoop) -> None:
    seen: list[int] = []
    before = signal.getsignal(signal.SIGUSR1)

    def signalled(number: int) -> None:
        seen.append(number)
        loop.post(loop.stop)

    with loop.signals(signalled, signal.SIGUSR1):
        loop.call_later(0, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        loop.run()
    assert seen == [signal.SIGUSR1]
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_signal_that_is_ignored_stays_ignored(loop: EventLoop) -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    with loop.signals(lambda _: pytest.fail("not ignored"), signal.SIGUSR1):
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    signal.signal(signal.SIGUSR1, before)


def test_what_a_timer_leaves_is_seen_before_the_next_sleep(loop: EventLoop) -> None:
    left: list[int] = []

    def before_sleep() -> bool:
        if left:
            loop.stop()
        return False

    loop.before_sleep(before_sleep)
    loop.call_later(0.01, lambda: left.append(1))
    loop.call_later(30, lambda: pytest.fail("slept"))
    loop.run()


def test_a_timer_set_before_the_sleep_ends_it(loop: EventLoop) -> None:
    set_before: list[int] = []

    def before_sleep() -> bool:
        if not set_before:
            set_before.append(1)
            loop.call_later(0.01, loop.stop)
        return False

    loop.before_sleep(before_sleep)
    loop.run()


def test_there_is_no_sleep_while_there_is_something_before_it(loop: EventLoop) -> None:
    left = 3

    def before_sleep() -> bool:
        nonlocal left
        left -= 1
        if left < 0:
            loop.stop()
        return left >= 0

    loop.before_sleep(before_sleep)
    loop.run()
    assert left == -1
