"""The client against a store that lies, floods, stalls or dies; and its parsers against untrusted values."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpp_ring import xs_wire
from cpp_ring.store import MAX_EVENTS, Store, StoreError
from cpp_ring.store_values import parse_u32, parse_u32_list, quote

Answer = Callable[[int, int, int, bytes], bytes]
"""(type, req_id, tx_id, payload) of a request -> bytes to send."""


def message(kind: int, number: int, payload: bytes, size: int | None = None) -> bytes:
    return xs_wire.HEADER.pack(kind, number, 0, len(payload) if size is None else size) + payload


def event(path: str, token: str) -> bytes:
    return message(xs_wire.XS_WATCH_EVENT, 0, f"{path}\0{token}\0".encode())


@contextmanager
def served(answer: Answer, timeout: float = 10.0) -> Iterator[Store]:
    """A Store whose other end is `answer`."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with theirs:
            while header := theirs.recv(16, socket.MSG_WAITALL):
                kind, number, transaction, size = xs_wire.HEADER.unpack(header)
                payload = theirs.recv(size, socket.MSG_WAITALL) if size else b""
                try:
                    theirs.sendall(answer(kind, number, transaction, payload))
                except OSError:
                    return

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with Store(ours.detach(), timeout) as store:
            yield store
    finally:
        thread.join()


def failure(store: Store) -> StoreError:
    with pytest.raises(StoreError) as error:
        store.read("/a")
    return error.value


@pytest.mark.parametrize(
    "answer",
    [
        lambda kind, number, t, p: message(kind, number, b"", 4097),
        lambda kind, number, t, p: message(kind, number, b"", 2**32 - 1),
        lambda kind, number, t, p: message(kind, number + 1, b"x"),
        lambda kind, number, t, p: message(kind, 0, b"x"),
        lambda kind, number, t, p: message(xs_wire.XS_WRITE, number, b"OK\0"),
        lambda kind, number, t, p: message(99, number, b"x"),
    ],
)
def test_an_answer_that_breaks_the_protocol_ends_the_connection(answer: Answer) -> None:
    with served(answer) as store:
        assert failure(store).errno == errno.EPROTO
        assert failure(store).errno == errno.ENOTCONN
        for use in (store.events, store.fileno, lambda: store.next_event(0)):
            with pytest.raises(StoreError):
                use()


def test_oxenstoreds_word_for_a_quota_that_is_used_up_is_understood() -> None:
    with served(lambda kind, number, t, p: message(xs_wire.XS_ERROR, number, b"EQUOTA\0")) as store:
        error = failure(store)
        assert error.errno == errno.ENOSPC
        assert "(EQUOTA); this domain's quota is used up: remove" in str(error)


def test_an_error_of_no_known_name_is_shown_escaped() -> None:
    with served(lambda kind, number, t, p: message(xs_wire.XS_ERROR, number, b"E\x1b[31m\xff" * 100)) as store:
        error = failure(store)
        assert error.errno == errno.EIO
        assert "\x1b" not in str(error)
        assert len(str(error)) < 200
        assert failure(store).errno == errno.EIO, "an error is no reason to end the connection"


def test_a_transaction_number_that_is_none_ends_the_connection() -> None:
    for number_text in (b"\0", b"0\0", b"-1\0", b"4294967296\0", b"x" * 4096):
        with served(lambda kind, number, t, p, text=number_text: message(kind, number, text)) as store:  # type: ignore[misc]
            with pytest.raises(StoreError) as error, store.transaction():
                raise AssertionError("unreachable")
            assert error.value.errno == errno.EPROTO


def test_a_store_that_closes_is_gone_not_hanging() -> None:
    ours, theirs = socket.socketpair()
    with Store(ours.detach()) as store:
        theirs.send(b"\2\0\0")
        theirs.close()
        assert failure(store).errno == errno.ECONNRESET
        assert failure(store).errno == errno.ENOTCONN


def test_a_store_that_does_not_answer_is_given_up() -> None:
    ours, theirs = socket.socketpair()
    with theirs, Store(ours.detach(), timeout=0.01) as store:
        first, second = failure(store), failure(store)
        assert (first.errno, second.errno) == (errno.ETIMEDOUT, errno.ENOTCONN)
        assert "no answer in 0.01 s" in str(first)
        assert str(second) == str(first), "whoever comes later wants to know it, too"


def test_a_store_that_does_not_read_is_given_up() -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(0.01)
    with pytest.raises(TimeoutError):
        ours.sendall(b"x" * 2**24)
    with theirs, Store(ours.detach(), timeout=0.01) as store:
        assert failure(store).errno == errno.ETIMEDOUT


def test_a_store_that_only_sends_events_is_given_up() -> None:
    ours, theirs = socket.socketpair()
    stop = threading.Event()

    def flood() -> None:
        with theirs:
            while not stop.is_set():
                try:
                    theirs.sendall(event("/x", "t") * 100)
                except OSError:
                    return

    thread = threading.Thread(target=flood)
    thread.start()
    with Store(ours.detach(), timeout=0.05) as store:
        assert failure(store).errno == errno.ETIMEDOUT
    stop.set()
    thread.join()


def test_an_answer_that_nobody_asked_for_is_found_while_waiting_for_events() -> None:
    ours, theirs = socket.socketpair()
    with theirs, Store(ours.detach()) as store:
        theirs.send(message(xs_wire.XS_READ, 7, b"x"))
        with pytest.raises(StoreError) as error:
            store.events()
        assert error.value.errno == errno.EPROTO


def test_events_of_no_watch_are_dropped_and_malformed_ones_too() -> None:
    def answer(kind: int, number: int, transaction: int, payload: bytes) -> bytes:
        noise = event("/x", "other") + message(xs_wire.XS_WATCH_EVENT, 0, b"") + message(15, 0, b"nothing")
        return noise + message(kind, number, b"OK\0") + event("/a/b", "t") + noise

    with served(answer) as store:
        store.watch("/a", "t")
        assert store.next_event(10) == ("/a/b", "t")
        assert store.next_event(0) is None


def test_events_in_pieces_are_put_together() -> None:
    ours, theirs = socket.socketpair()
    with theirs, Store(ours.detach()) as store:
        store._tokens["t"] = {"/a": None}
        data = event("/a/b", "t") + event("/a/c", "t")
        for at in range(len(data) - 1):
            theirs.send(data[at : at + 1])
            store.events()
        theirs.send(data[-1:])
        assert store.next_event(10) == ("/a/c", "t")


def test_a_flood_of_different_events_is_kept_within_bounds() -> None:
    def answer(kind: int, number: int, transaction: int, payload: bytes) -> bytes:
        flood = b"".join(event(f"/a/{n}", "t") for n in range(5 * MAX_EVENTS)) if kind == xs_wire.XS_READ else b""
        return flood + message(kind, number, b"OK\0")

    with served(answer) as store:
        store.watch("/a", "t")
        store.watch("/b", "t")
        store.read("/x")
        events = store.events()
        assert len(events) == MAX_EVENTS + 2
        assert events[-2:] == [("/a", "t"), ("/b", "t")], "whoever gets these looks at everything"


def test_a_request_too_long_is_refused_here_and_costs_nothing() -> None:
    with served(lambda kind, number, t, p: message(kind, number, b"OK\0")) as store:
        with pytest.raises(StoreError) as error:
            store.write("/a", "x" * 4096)
        assert error.value.errno == errno.E2BIG
        store.write("/a", "x")


def test_a_nul_in_a_path_or_token_is_refused_here() -> None:
    with served(lambda kind, number, t, p: message(kind, number, b"OK\0")) as store:
        for use in (lambda: store.read("/a\0/b"), lambda: store.watch("/a", "t\0"), lambda: store.write("\0", "")):
            with pytest.raises(StoreError) as error:
                use()
            assert error.value.errno == errno.EINVAL
        store.mkdir("/a")


def test_no_store_at_all_says_where_it_was_sought(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no xenstore at .*/socket") as error:
        Store.open(tmp_path / "socket")
    assert error.value.errno == errno.ENOENT
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="no xenstore at"):
        Store.open(tmp_path / "file")


@pytest.fixture
def busy_store(tmp_path: Path) -> Iterator[socket.socket]:
    """One that has as many waiting to be accepted as it lets wait, as xenstored when emulators start together."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(str(tmp_path / "socket"))
        listener.listen(0)
        waiting.connect(str(tmp_path / "socket"))
        yield listener


def test_a_store_that_many_connect_to_is_waited_for(
    busy_store: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    def accept_meanwhile(pause: float) -> None:
        pauses.append(pause)
        busy_store.accept()[0].close()

    monkeypatch.setattr("cpp_ring.unix_socket.time.sleep", accept_meanwhile)
    with Store.open(tmp_path / "socket"):
        assert len(pauses) == 1


@pytest.mark.usefixtures("busy_store")
def test_a_store_that_accepts_nobody_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no xenstore at") as error:
        Store.open(tmp_path / "socket", timeout=0.05)
    assert error.value.errno == errno.ETIMEDOUT


def test_a_character_device_is_spoken_to_as_the_kernels_xenbus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pseudo-terminal stands in for /dev/xen/xenbus: what matters is that it is opened, not connected to."""
    master, slave = os.openpty()
    try:
        with Store.open(os.ttyname(slave)) as store:
            assert store.fileno() >= 0
    finally:
        os.close(master)
        os.close(slave)


def test_closing_twice_and_forgetting_to_close_are_harmless() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        store = Store(ours.detach())
        store.close()
        store.close()
        ours, theirs2 = socket.socketpair()
        with theirs2:
            del store
            Store(ours.detach())
            assert theirs2.recv(1) == b""


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "-1",
        "+1",
        "1 ",
        " 1",
        "1_0",
        "0x10",
        "1.0",
        "\u0661",
        "\u00b2",
        "4294967296",
        "99999999999",
        "1" * 5000,
        "\0",
        "1\n",
    ],
)
def test_what_is_no_number_raises_and_is_quoted(text: str) -> None:
    with pytest.raises(ValueError, match="not a number from 0 to 4294967295") as error:
        parse_u32(text)
    assert len(str(error.value)) < 200
    assert str(error.value).isprintable()


@given(st.integers(0, 2**32 - 1))
def test_numbers_are_read(number: int) -> None:
    assert parse_u32(str(number)) == number


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_numbers_outside_their_range_raise(number: int, minimum: int, maximum: int) -> None:
    if minimum <= number <= maximum:
        assert parse_u32(str(number), maximum, minimum) == number
    else:
        with pytest.raises(ValueError, match="not a number"):
            parse_u32(str(number), maximum, minimum)


@given(st.text())
def test_any_text_gives_a_number_or_a_valueerror(text: str) -> None:
    complaint = ""
    try:
        assert 0 <= parse_u32(text) < 2**32
    except ValueError as error:
        complaint = str(error)
    assert complaint.isprintable()


def test_lists_of_numbers() -> None:
    assert parse_u32_list("1") == [1]
    assert parse_u32_list("1 2 30") == [1, 2, 30]
    for text in ("", " ", "1  2", " 1", "1,2", "1 x", " ".join("1" * 17), "1 " * 5000):
        with pytest.raises(ValueError):  # noqa: PT011 - any of them
            parse_u32_list(text)
    with pytest.raises(ValueError, match="not a number from 0 to 5"):
        parse_u32_list("1 6", maximum=5)


@given(st.text(max_size=300))
def test_quoted_text_is_one_short_printable_line(text: str) -> None:
    assert quote(text).isprintable()
    assert quote(text).isascii()
    assert len(quote(text)) <= 64 * 10 + 5


def test_the_header_is_xens() -> None:
    assert xs_wire.HEADER.size == struct.calcsize("<4I") == 16
    assert xs_wire.PAYLOAD_MAX == 4096
