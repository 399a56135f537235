"""Threat 25, xenstore flood and lies: watches merge, memory stays flat, every value is untrusted (XSA-349)."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cpp_ring import xs_wire
from cpp_ring.store import Store
from cpp_ring.store_values import parse_u32, parse_u32_list, quote
from emulator.local.limits import Limits
from emulator.local.store import StoreServer
from emulator.local.store_connection import StoreConnection
from tests.local import machines

machine = machines.machine
runtime = machines.runtime

GARBAGE = [
    "", " ", "\0", "\n", "4\n", " 4", "4 ", "-1", "+4", "0x4", "4e0", "4.0", "1_000", "NaN", "\u0664", "\u00b2",
    "4294967296", "9" * 4096, "\x1b[2J", "%s%n", "'; rm -rf /", "\udcff", "\ufffd" * 1000,
]  # fmt: skip


class Loop:
    """A store and its connections, flushed by hand: what the broker does at the end of each turn."""

    def __init__(self) -> None:
        self.server = StoreServer(Limits(), lambda domid: domid < 3)
        for domid in (0, 1, 2):
            self.server.introduce(domid)
        self.sockets: list[socket.socket] = []

    def connect(self, domid: int) -> tuple[StoreConnection, socket.socket]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self.sockets += [ours, theirs]
        return StoreConnection(ours, domid, self.server), theirs

    def flush(self) -> None:
        while talkative := self.server.take_talkative():
            for connection in talkative:
                assert connection.flush()

    def change(self, domid: int, path: str, value: bytes = b"") -> None:
        view = self.server.transaction(domid, whole=True)
        view.write(path, value)
        self.server.watches.fire(view.commit())

    def remove(self, domid: int, path: str) -> None:
        view = self.server.transaction(domid, whole=True)
        view.rm(path)
        self.server.watches.fire(view.commit())


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    for each in loop.sockets:
        each.close()


def resident_pages() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1])


def received(client: socket.socket) -> list[tuple[str, str]]:
    """Events that have arrived."""
    data = b""
    while True:
        try:
            data += client.recv(1 << 20)
        except BlockingIOError:
            break
    events = []
    while data:
        kind, _, _, size = xs_wire.HEADER.unpack_from(data)
        assert kind == xs_wire.XS_WATCH_EVENT
        path, token, _ = data[16 : 16 + size].decode().split("\0")
        events.append((path, token))
        data = data[16 + size :]
    return events


def test_a_million_events_for_a_reader_that_sleeps_are_as_many_as_it_has_watches(loop: Loop) -> None:
    connection, client = loop.connect(0)
    for number in range(100):
        loop.server.watches.add(connection, "/local/domain/1/device", f"token{number}")
    before = resident_pages()
    for turn in range(10_000):  # x 100 watches
        loop.change(1, "/local/domain/1/device/0/state", b"%d" % turn)
    assert resident_pages() - before < 256, "a megabyte at most"
    loop.flush()
    events = received(client)
    assert len(events) == len(set(events)) == 200, "the first one of each watch, and one for all the changes"


def test_a_reader_that_never_reads_costs_a_bounded_number_of_events(loop: Loop) -> None:
    """Ever new names, so that no two events are equal: past the limit the watch's own path stands for the rest."""
    connection, client = loop.connect(0)
    loop.server.watches.add(connection, "/local/domain/1/device", "t")
    loop.flush()
    for turn in range(5000):
        path = f"/local/domain/1/device/{turn}-{'x' * 500}"
        loop.change(1, path)
        loop.remove(1, path)
    loop.flush()
    before = resident_pages()
    for turn in range(5000, 10_000):
        path = f"/local/domain/1/device/{turn}-{'x' * 500}"
        loop.change(1, path)
        loop.remove(1, path)
        if turn % 1000 == 0:
            loop.flush()
    assert resident_pages() - before < 512
    events: list[tuple[str, str]] = []
    while more := received(client):
        events += more
        loop.flush()
        connection.flush()
    assert len(events) < 3000
    assert ("/local/domain/1/device", "t") in events[1:], "the reader is told to look at everything"


def test_a_flood_by_one_guest_does_not_keep_the_others_from_the_store(machine: Path) -> None:
    stop = threading.Event()

    def flood() -> None:
        with Store.open(machine / "dom1" / "xenstored") as guest:
            number = 0
            while not stop.is_set():
                guest.write(f"device/{number % 100}", "x")
                number += 1

    with Store.open(machine / "dom0" / "xenstored") as silent, Store.open(machine / "dom2" / "xenstored") as neighbour:
        silent.watch("/local/domain/1", "never read")
        thread = threading.Thread(target=flood)
        thread.start()
        try:
            for number in range(300):
                neighbour.write("device/x", str(number))
                assert neighbour.read("device/x") == str(number)
        finally:
            stop.set()
            thread.join()
        assert len(silent.events()) <= 101


def test_a_reader_merges_what_an_unmerging_store_sends() -> None:
    """A real xenstored may queue every event: many thousands of them are few for the caller."""
    ours, theirs = socket.socketpair()
    event = xs_wire.HEADER.pack(xs_wire.XS_WATCH_EVENT, 0, 0, 7) + b"/a/b\0t\0"

    def flood() -> None:
        theirs.sendall(xs_wire.HEADER.pack(xs_wire.XS_WATCH, 1, 0, 3) + b"OK\0")
        for _ in range(200):
            theirs.sendall(event * 1000)
        theirs.sendall(xs_wire.HEADER.pack(xs_wire.XS_WATCH_EVENT, 0, 0, 10) + b"/a/last\0t\0")

    thread = threading.Thread(target=flood)
    thread.start()
    with theirs, Store(ours.detach()) as store:
        store.watch("/a", "t")
        before = resident_pages()
        seen: list[tuple[str, str]] = []
        while ("/a/last", "t") not in seen:
            event_seen = store.next_event(10)
            assert event_seen is not None
            seen.append(event_seen)
        assert resident_pages() - before < 256
        assert set(seen) == {("/a/b", "t"), ("/a/last", "t")}
        thread.join()


@pytest.mark.parametrize("text", GARBAGE)
def test_garbage_in_a_number_is_an_error_that_can_be_shown(text: str) -> None:
    for parse in (parse_u32, parse_u32_list):
        with pytest.raises(ValueError, match="number") as error:
            parse(text)
        assert str(error.value).isprintable()
        assert str(error.value).isascii()
        assert len(str(error.value)) < 800


@pytest.mark.parametrize("text", GARBAGE)
def test_garbage_can_be_shown_on_one_line(text: str) -> None:
    assert quote(text).isprintable()
    assert os.linesep not in quote(text)


@pytest.mark.parametrize("value", [b"", b"\0" * 100, b"\xff" * 2048, b"\x1b]0;title\x07", bytes(range(256))])
def test_any_bytes_that_a_guest_writes_are_read_as_text(machine: Path, value: bytes) -> None:
    with Store.open(machine / "dom1" / "xenstored") as guest, Store.open(machine / "dom0" / "xenstored") as backend:
        guest.write("device/x", value)
        text = backend.read("/local/domain/1/device/x")
        text.encode()  # no surrogates, which could not be printed
        with pytest.raises(ValueError, match="number"):
            parse_u32(text)
