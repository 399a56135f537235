"""Whatever a client sends or does not read, the broker answers or cuts it off, and serves the others."""

from __future__ import annotations

import errno
import os
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emulator.local import wire
from tests.local.client import Client

OPERATIONS = [getattr(wire, name) for name in dir(wire) if name.startswith(("GRANT_", "EVTCHN_"))]
PRIVILEGED = [getattr(wire, name) for name in dir(wire) if name.startswith(("DOMAIN_", "PLAN_"))] + [wire.STOP]


def raw_exchange(client: Client, packet: bytes) -> int:
    """The errno of the reply to any bytes."""
    client.socket.send(packet)
    reply, fds, _, _ = socket.recv_fds(client.socket, 65536, 64)
    for fd in fds:
        os.close(fd)
    error: int = wire.REPLY.unpack_from(reply)[0]
    return error


@pytest.mark.parametrize("size", [1, 4, 31, 33, 100, 4096, 60000])
def test_a_packet_of_the_wrong_size_is_invalid(machine: Path, size: int) -> None:
    with Client(machine, 1) as guest:
        assert raw_exchange(guest, b"\1" * size) == errno.EINVAL
        assert guest.share(0)[0] == 8


@pytest.mark.parametrize("op", [8, 15, 20, 31, 35, 255, 2**31, 2**32 - 1])
def test_an_unknown_operation_is_refused(machine: Path, op: int) -> None:
    with Client(machine, 0) as client:
        assert client.refused(op) == errno.ENOSYS


@pytest.mark.parametrize("op", PRIVILEGED)
def test_a_guest_cannot_do_what_is_dom0s(machine: Path, op: int) -> None:
    with Client(machine, 1) as guest:
        assert guest.refused(op, 2) == errno.EPERM


@pytest.mark.parametrize("op", [wire.GRANT_UNSHARE, wire.GRANT_UNMAP, wire.EVTCHN_CLOSE, wire.EVTCHN_ALLOC_UNBOUND])
def test_arguments_an_operation_does_not_take_must_be_zero(machine: Path, op: int) -> None:
    with Client(machine, 1) as guest:
        for place in range(2, 8):
            words = [op, 1, 0, 0, 0, 0, 0, 0]
            words[place] = 1
            assert raw_exchange(guest, wire.REQUEST.pack(*words)) == errno.EINVAL


def test_unknown_flags_are_refused(machine: Path) -> None:
    with Client(machine, 1) as guest:
        assert guest.refused(wire.GRANT_SHARE, 0, 1, 4) == errno.EINVAL
        assert guest.refused(wire.GRANT_SHARE, 0, 1, 2**31) == errno.EINVAL


def test_another_version_of_the_protocol_is_refused(machine: Path) -> None:
    client = Client(machine, 1, hello=False)
    with client:
        assert client.refused(wire.HELLO, wire.VERSION + 1) == errno.EPROTO


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    packets=st.lists(
        st.one_of(
            st.binary(max_size=64),
            st.tuples(
                st.sampled_from(OPERATIONS),
                st.tuples(*[st.sampled_from([0, 1, 2, 3, 8, 9, 64, 4095, 4096, 65536, 2**31, 2**32 - 1])] * 7),
            ).map(lambda words: wire.REQUEST.pack(words[0], *words[1])),
        ),
        max_size=20,
    )
)
def test_any_sequence_of_packets_leaves_the_broker_serving(machine: Path, packets: list[bytes]) -> None:
    with Client(machine, 1) as guest:
        for packet in packets:
            if packet:
                raw_exchange(guest, packet)
    with Client(machine, 1) as guest, Client(machine, 0) as backend:
        first, _ = guest.share(0)
        backend.map(1, first)
        assert backend.bind(1, guest.alloc_unbound(0).port).wait()


def test_a_client_that_does_not_read_its_replies_is_cut_off(machine: Path) -> None:
    with Client(machine, 1) as guest, Client(machine, 2) as neighbour:
        request = wire.REQUEST.pack(wire.GRANT_SHARE, 0, 1, 0, 0, 0, 0, 0)

        def send_many() -> None:
            for _ in range(1000):
                guest.socket.send(request)

        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            send_many()
        neighbour.share(0)


def test_descriptors_sent_to_the_broker_are_not_kept(machine: Path) -> None:
    with Client(machine, 1) as guest:
        read, write = os.pipe()
        try:
            socket.send_fds(guest.socket, [wire.REQUEST.pack(wire.EVTCHN_CLOSE, 9, 0, 0, 0, 0, 0, 0)], [write])
            assert struct.unpack_from("<I", guest.socket.recv(4096))[0] == errno.ENOENT
            os.close(write)
            assert os.read(read, 1) == b"", "somebody still holds the write end"
        finally:
            os.close(read)


def test_connections_of_a_guest_are_limited_and_its_neighbour_has_its_own(machine: Path) -> None:
    clients: list[Client] = []

    def connect_many() -> None:
        for _ in range(100):
            clients.append(Client(machine, 1))

    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        connect_many()
    assert len(clients) == 64
    with Client(machine, 2) as neighbour:
        neighbour.share(0)
        for client in clients:
            client.close()
        neighbour.share(0)  # once it is answered, what closed before is gone at the next request
    with Client(machine, 1) as guest:
        guest.share(0)


def test_half_closed_and_silent_clients_cost_nobody_anything(machine: Path) -> None:
    silent = [Client(machine, 1, hello=False) for _ in range(10)]
    silent[0].socket.shutdown(socket.SHUT_WR)
    silent[1].socket.shutdown(socket.SHUT_RD)
    with Client(machine, 1) as guest:
        guest.share(0)
    for client in silent:
        client.close()
