"""The broker outlives a lack of descriptors, a stop in the middle of everything, and its own mistakes."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import threading
from pathlib import Path

import pytest

from cpp_ring.store import Store, StoreError
from emulator.local import Control, wire
from emulator.local.broker import Broker
from emulator.local.ports import PortTable
from tests.local.client import Client


@pytest.fixture
def starved(process_machine: Path) -> Path:
    """A machine whose broker has a few descriptors left."""
    with Control(process_machine) as control:
        pid = control.pid
        _, before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        taken = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
        free = next(fd for fd in itertools.count() if fd not in taken)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (free + 6, before))
    return process_machine


def test_without_descriptors_requests_fail_and_leave_nothing_behind(starved: Path) -> None:
    with Client(starved, 1) as guest, Client(starved, 0) as backend:
        first, _ = guest.share(0)
        held, error = guest.until_refused(wire.GRANT_SHARE, 0, 1, 0)
        assert error == errno.EMFILE
        assert guest.refused(wire.EVTCHN_ALLOC_UNBOUND, 0) == errno.EMFILE
        with Client(starved, 0):  # takes the last one
            assert backend.refused(wire.GRANT_MAP, 1, first, 1, 0) == errno.EMFILE
            assert guest.refused(wire.GRANT_SHARE, 0, 1, 0) == errno.EMFILE
        for ref in held:
            guest.call(wire.GRANT_UNSHARE, ref)
        assert guest.until_refused(wire.GRANT_SHARE, 0, 1, 0) == (held, errno.EMFILE)
        guest.call(wire.GRANT_UNSHARE, held[0])
        backend.map(1, first)


def test_without_descriptors_connections_are_turned_away_and_nobody_waits(starved: Path) -> None:
    with Client(starved, 1) as guest:
        clients: list[Client] = []

        def connect_many() -> None:
            for _ in range(100):
                clients.append(Client(starved, 0))

        with pytest.raises(ConnectionError):
            connect_many()
        guest.call(wire.HELLO, wire.VERSION)
        assert guest.refused(wire.GRANT_SHARE, 0, 1, 0) == errno.EMFILE
        for client in clients:
            client.close()
        guest.call(wire.HELLO, wire.VERSION)  # once it is answered, what closed before is gone at the next request
        guest.share(0)


def test_a_fault_of_the_broker_costs_one_connection(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(self: PortTable, remote: int) -> None:
        raise RuntimeError("a mistake")

    with Client(machine, 1) as neighbour:
        with monkeypatch.context() as patched:
            patched.setattr(PortTable, "alloc_unbound", broken)
            for _ in range(30):
                with Client(machine, 1) as guest, pytest.raises(ConnectionError):
                    guest.alloc_unbound(0)
        neighbour.alloc_unbound(0)
    assert 0 < capfd.readouterr().err.count("RuntimeError: a mistake") <= 10, "said, but not for ever"


def test_a_stop_ends_every_client_and_leaves_no_descriptor(runtime: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names suffice
    broker = Broker(runtime / "m", [1, 2])
    thread = threading.Thread(target=broker.run)
    thread.start()
    with Control(runtime / "m") as control, Client(runtime / "m", 1) as guest, Client(runtime / "m", 0) as backend:
        backend.map(1, guest.share(0)[0])
        backend.bind(1, guest.alloc_unbound(0).port)
        control.delay(wire.GRANT_SHARE, 60_000, times=1)
        guest.socket.send(wire.REQUEST.pack(wire.GRANT_SHARE, 0, 1, 0, 0, 0, 0, 0))
        store = Store.open(runtime / "m" / "dom1" / "xenstored")
        store.watch("device", "t")
        store.transaction().__enter__()
        control.storm(0, 1, 1_000_000)
        control.stop()
        thread.join()
        with pytest.raises(ConnectionError):
            backend.call(wire.HELLO, wire.VERSION)
        with store, pytest.raises(StoreError):
            store.read("name")
    assert not list((runtime / "m").glob("dom*"))
    broker.close()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_broker_that_fails_to_start_leaves_the_machine_free(runtime: Path) -> None:
    with pytest.raises(OSError, match="too long"):
        Broker(runtime / ("y" * 100))
    with Broker(runtime / "m", []):
        pass
    with Broker(runtime / "m", []):
        pass
