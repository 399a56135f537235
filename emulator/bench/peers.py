"""What a config access is measured against: the machine's limit, and what one would use without grants.

Each peer has a server process, pinned to the server's core and asleep between its turns, and `measure`, which the
bench calls on the client's core.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterator
from mmap import mmap
from multiprocessing.connection import Connection
from typing import Protocol

from cpp_ring import LatencyRecorder, PingPong, pin_thread

MESSAGE = bytes(24)  # a small request or answer of the config ring
WARM_UP = 200


class Peer(Protocol):
    """Something whose round trips can be measured."""

    def measure(self, count: int, recorder: LatencyRecorder) -> None:
        """Records `count` round trips in ns."""


_fork = multiprocessing.get_context("fork")


@contextlib.contextmanager
def serving(cpu: int, serve: Callable[[Connection], None]) -> Iterator[Connection]:
    """Runs `serve` in a process of its own until the parent's end of the pipe is closed."""
    ours, theirs = _fork.Pipe()

    def main() -> None:
        ours.close()
        pin_thread(cpu)
        with contextlib.suppress(EOFError, ConnectionError, KeyboardInterrupt):
            serve(theirs)
        os._exit(0)

    process = _fork.Process(target=main, daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()


class _PingPongPeer:
    """The bare two words; with an eventfd, the server sleeps on it before each."""

    def __init__(self, control: Connection, words: PingPong, eventfd: int) -> None:
        self._control = control
        self._words = words
        self._eventfd = eventfd

    def measure(self, count: int, recorder: LatencyRecorder) -> None:
        warm_up = 10 if self._eventfd >= 0 else WARM_UP
        self._control.send(count + warm_up)
        answered = self._words.measure(warm_up, LatencyRecorder(), self._eventfd)
        if not (answered and self._words.measure(count, recorder, self._eventfd)):
            raise TimeoutError("the ping-pong server did not answer within a second; is the machine overloaded?")


@contextlib.contextmanager
def ping_pong(cpu: int, asleep: bool) -> Iterator[Peer]:
    """`limit.cache-line`, or with `asleep` `peer.eventfd`: the caller spins, the server is woken for each."""
    memory = mmap(-1, 4096)  # shared with the children
    eventfd = os.eventfd(0, os.EFD_CLOEXEC) if asleep else -1

    def serve(control: Connection) -> None:
        words = PingPong(memory)
        while True:
            words.serve(control.recv(), eventfd)

    try:
        with serving(cpu, serve) as control:
            yield _PingPongPeer(control, PingPong(memory), eventfd)
    finally:
        if asleep:
            os.close(eventfd)


class _EchoPeer:
    def __init__(self, send: Callable[[bytes], object], receive: Callable[[], object]) -> None:
        self._send = send
        self._receive = receive

    def measure(self, count: int, recorder: LatencyRecorder) -> None:
        send, receive, clock = self._send, self._receive, time.perf_counter_ns
        for _ in range(10):
            send(MESSAGE)
            receive()
        for _ in range(count):
            start = clock()
            send(MESSAGE)
            receive()
            recorder.record(clock() - start)


@contextlib.contextmanager
def unix_socket(cpu: int) -> Iterator[Peer]:
    """`peer.unix-socket`: one message each way over a SEQPACKET socket, both sides asleep while they wait."""
    client, server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def serve(_control: Connection) -> None:
        client.close()
        while data := server.recv(4096):
            server.send(data)

    with client, serving(cpu, serve):
        server.close()
        client.settimeout(2)
        yield _EchoPeer(client.send, lambda: client.recv(4096))
        client.close()  # before the server is waited for: its recv then ends


@contextlib.contextmanager
def pipe(cpu: int) -> Iterator[Peer]:
    """`peer.pipe`: a multiprocessing.Pipe, as a Python programmer would reach for."""

    def serve(control: Connection) -> None:
        while True:
            control.send_bytes(control.recv_bytes())

    with serving(cpu, serve) as control:
        yield _EchoPeer(control.send_bytes, control.recv_bytes)
