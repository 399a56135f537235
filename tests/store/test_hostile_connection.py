"""Whatever a connection to the store sends, or does not read, the broker goes on."""

from __future__ import annotations

import random
import socket
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpp_ring import xs_wire
from cpp_ring.store import Store
from cpp_ring.unix_socket import connect as connect_to

KINDS = [getattr(xs_wire, name) for name in dir(xs_wire) if name.startswith("XS_")]


def connect(machine: Path, domid: int) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connect_to(connection, machine / f"dom{domid}" / "xenstored", 10)
    return connection


def exchange(connection: socket.socket, kind: int, payload: bytes, transaction: int = 0) -> tuple[int, bytes]:
    """(type, payload) of the answer to one request; events are passed over."""
    connection.sendall(xs_wire.HEADER.pack(kind, 7, transaction, len(payload)) + payload)
    while True:
        header = connection.recv(16, socket.MSG_WAITALL)
        answer, number, _, size = xs_wire.HEADER.unpack(header)
        body = connection.recv(size, socket.MSG_WAITALL) if size else b""
        if answer != xs_wire.XS_WATCH_EVENT:
            assert number == 7
            return answer, body


def still_serves(machine: Path) -> None:
    with Store.open(machine / "dom2" / "xenstored") as neighbour:
        neighbour.write("device/x", "1")
        assert neighbour.read("device/x") == "1"


@pytest.mark.parametrize("kind", [0, 8, 9, 15, 16, 18, 19, 20, 22, 100, 0xFFFF, 2**32 - 1])
def test_types_without_a_meaning_here_are_enosys(machine: Path, kind: int) -> None:
    with connect(machine, 1) as guest:
        assert exchange(guest, kind, b"x\0") == (xs_wire.XS_ERROR, b"ENOSYS\0")


# A value may hold any bytes, and what the two others are sent means nothing.
ANY_PAYLOAD = (xs_wire.XS_WRITE, xs_wire.XS_TRANSACTION_START, xs_wire.XS_RESET_WATCHES)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ANY_PAYLOAD])
@pytest.mark.parametrize("payload", [b"", b"x", b"\0\0\0\0\0", b"a\0b\0c\0d\0", b"\xff" * 100 + b"\0"])
def test_payloads_of_the_wrong_shape_are_refused(machine: Path, kind: int, payload: bytes) -> None:
    with connect(machine, 1) as guest:
        answer, body = exchange(guest, kind, payload)
        assert answer == xs_wire.XS_ERROR
        assert body in (b"EINVAL\0", b"ENOENT\0", b"EACCES\0", b"ENOSYS\0")
        assert exchange(guest, xs_wire.XS_READ, b"name\0") == (xs_wire.XS_READ, b"Domain-1")


@pytest.mark.parametrize("kind", ANY_PAYLOAD)
@pytest.mark.parametrize("payload", [b"", b"device"])
def test_a_payload_without_its_nul_is_invalid(machine: Path, kind: int, payload: bytes) -> None:
    with connect(machine, 1) as guest:
        assert exchange(guest, kind, payload) == (xs_wire.XS_ERROR, b"EINVAL\0")


@pytest.mark.parametrize("size", [4097, 65536, 2**31, 2**32 - 1])
def test_a_message_too_long_ends_its_connection_alone(machine: Path, size: int) -> None:
    with connect(machine, 1) as guest:
        guest.sendall(xs_wire.HEADER.pack(xs_wire.XS_READ, 1, 0, size))
        assert guest.recv(1) == b""
    still_serves(machine)


def test_a_transaction_of_somebody_else_is_unknown(machine: Path) -> None:
    with connect(machine, 1) as one, connect(machine, 1) as two:
        _, number = exchange(one, xs_wire.XS_TRANSACTION_START, b"\0")
        there = int(number[:-1])
        assert exchange(two, xs_wire.XS_WRITE, b"device/x\0y", there) == (xs_wire.XS_ERROR, b"ENOENT\0")
        assert exchange(two, xs_wire.XS_TRANSACTION_END, b"T\0", there) == (xs_wire.XS_ERROR, b"ENOENT\0")
        assert exchange(one, xs_wire.XS_TRANSACTION_START, b"\0", there) == (xs_wire.XS_ERROR, b"EBUSY\0")
        assert exchange(one, xs_wire.XS_TRANSACTION_END, b"X\0", there) == (xs_wire.XS_ERROR, b"EINVAL\0")
        assert exchange(one, xs_wire.XS_TRANSACTION_END, b"T\0", there) == (xs_wire.XS_TRANSACTION_END, b"OK\0")
        assert exchange(one, xs_wire.XS_TRANSACTION_END, b"T\0", there) == (xs_wire.XS_ERROR, b"ENOENT\0")


def test_reset_watches_ends_watches_and_transactions(machine: Path) -> None:
    with connect(machine, 1) as guest:
        _, number = exchange(guest, xs_wire.XS_TRANSACTION_START, b"\0")
        exchange(guest, xs_wire.XS_WATCH, b"device\0t\0")
        assert exchange(guest, xs_wire.XS_RESET_WATCHES, b"\0") == (xs_wire.XS_RESET_WATCHES, b"OK\0")
        assert exchange(guest, xs_wire.XS_UNWATCH, b"device\0t\0") == (xs_wire.XS_ERROR, b"ENOENT\0")
        assert exchange(guest, xs_wire.XS_TRANSACTION_END, b"T\0", int(number[:-1])) == (xs_wire.XS_ERROR, b"ENOENT\0")


def test_requests_in_any_pieces_are_put_together(machine: Path) -> None:
    with connect(machine, 1) as guest:
        request = xs_wire.HEADER.pack(xs_wire.XS_READ, 7, 0, 5) + b"name\0"
        for at in range(len(request)):
            guest.send(request[at : at + 1])
        assert guest.recv(24, socket.MSG_WAITALL) == xs_wire.HEADER.pack(xs_wire.XS_READ, 7, 0, 8) + b"Domain-1"


def test_requests_sent_ahead_are_answered_in_order(machine: Path) -> None:
    with connect(machine, 1) as guest:
        for number in range(100):
            guest.sendall(xs_wire.HEADER.pack(xs_wire.XS_READ, number, 0, 5) + b"name\0")
        for number in range(100):
            answer = guest.recv(24, socket.MSG_WAITALL)
            assert xs_wire.HEADER.unpack_from(answer)[1] == number


def test_a_client_that_reads_nothing_is_not_served_for_ever(machine: Path) -> None:
    """Requests wait in the client's own socket once its answers do not go out: the broker keeps a bounded number."""
    with connect(machine, 1) as guest:
        exchange(guest, xs_wire.XS_WRITE, b"device/big\0" + b"x" * 2048)
        guest.settimeout(0.2)
        request = xs_wire.HEADER.pack(xs_wire.XS_READ, 7, 0, 11) + b"device/big\0"
        with pytest.raises(TimeoutError):
            guest.sendall(request * 100_000)
        still_serves(machine)
        guest.settimeout(10)
        for _ in range(100):
            assert len(guest.recv(16 + 2048, socket.MSG_WAITALL)) == 16 + 2048


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    requests=st.lists(
        st.tuples(
            st.sampled_from(KINDS) | st.integers(0, 2**32 - 1),
            st.sampled_from([0, 1, 2, 5]),
            st.lists(
                st.sampled_from(["device", "/", "", "device/a", "device/a/b", "/local/domain/2", "@releaseDomain",
                                 "T", "F", "n1", "b2", "token", "0", "65536", "\xff", "//"]),
                max_size=4,
            ),
            st.sampled_from([b"", b"\0", b"junk", b"\0\0"]),
        ),
        max_size=30,
    )
)  # fmt: skip
def test_any_sequence_of_requests_gets_an_answer_each(
    machine: Path, requests: list[tuple[int, int, list[str], bytes]]
) -> None:
    with connect(machine, 1) as guest:
        for kind, transaction, strings, tail in requests:
            payload = "".join(string + "\0" for string in strings).encode("latin-1") + tail
            exchange(guest, kind, payload, transaction)
    still_serves(machine)


def test_any_bytes_at_all_leave_the_broker_serving(machine: Path) -> None:
    source = random.Random(2)
    for _ in range(200):
        with connect(machine, 1) as guest:
            guest.setblocking(False)
            try:
                for _ in range(source.randrange(1, 5)):
                    guest.send(source.randbytes(source.randrange(1, 5000)))
            except OSError:
                continue  # cut off already
    still_serves(machine)
