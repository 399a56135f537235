"""Threat 30: a backend that lies in its header and in the store, or never connects."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from guest.errors import (
    ConnectionFailed,
    DeviceGone,
    DriverError,
)
from guest.hypervisor import Domain
from guest.rng import RngDevice
from guest.transport import Transport
from guest.xenbus import MAX_QUEUES, State
from tests.raw_backend import RawBackend
from tests.scripted_device import ScriptedDevice
from tests.threats.lying_backend.conftest import LATE


@pytest.mark.parametrize(
    "header",
    [{"magic": 0}, {"magic": 0x45466D76}, {"magic": 0xFFFFFFFF}, {"version": 0}, {"version": 2}],
    ids=str,
)
def test_a_wrong_header_is_not_connected_to(
    domain: Domain, directory: Path, header: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with RawBackend(directory, ScriptedDevice()) as raw:
        honest = raw.write_header
        monkeypatch.setattr(raw, "write_header", lambda: honest(**header))
        raw.attach()
        transport = Transport(domain, 0)
        with pytest.raises(ConnectionFailed, match=r"bad_magic|bad_version"):
            transport.connect(5.0)
        transport.close()


def test_a_backend_that_is_dead_on_arrival_is_given_up(
    domain: Domain, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RawBackend(directory, ScriptedDevice()) as raw:
        honest = raw.write_header
        monkeypatch.setattr(raw, "write_header", lambda: honest(live=0))
        raw.attach()
        transport = Transport(domain, 0)
        with pytest.raises(ConnectionFailed):
            transport.connect(3.0)
        transport.close()


GARBAGE = [
    "",
    "-1",
    "x",
    "1 x",
    "4294967296",
    "1" * 4000,
    "\x00",
    "1\n",
    "0x2",
    "\N{FULLWIDTH DIGIT ONE}",
    "1" + " 1" * 100,
]


@pytest.mark.parametrize("node", ["state", "versions", "max-queues", "device-id", "online"])
@pytest.mark.parametrize("value", GARBAGE, ids=range(len(GARBAGE)))
def test_nonsense_in_the_store_is_an_error_not_a_crash(domain: Domain, directory: Path, node: str, value: str) -> None:
    raw = RawBackend(directory, ScriptedDevice())
    raw.attach(**{node.replace("-", "_"): value})
    transport = Transport(domain, 0)
    with pytest.raises(DriverError) as error:
        transport.connect(0.2)
    assert len(str(error.value)) < 200
    assert str(error.value).isprintable()
    transport.close()
    raw.stop()


@pytest.mark.parametrize("versions", ["2", "0", "7 8 9"])
def test_a_backend_that_shares_no_version_is_refused(domain: Domain, directory: Path, versions: str) -> None:
    raw = RawBackend(directory, ScriptedDevice())
    raw.attach(versions=versions)
    transport = Transport(domain, 0)
    with pytest.raises(ConnectionFailed, match="speaks versions"):
        transport.connect(1.0)
    transport.close()
    raw.stop()


def test_a_backend_that_claims_billions_of_queues_costs_a_bounded_number(domain: Domain, directory: Path) -> None:
    with RawBackend(directory, ScriptedDevice()) as raw:
        raw.attach(max_queues="4294967295")
        transport = Transport(domain, 0)
        transport.connect(5.0)
        assert len(transport.queues) == MAX_QUEUES
        transport.close()


def test_a_backend_that_never_connects_costs_the_deadline(domain: Domain, directory: Path) -> None:
    raw = RawBackend(directory, ScriptedDevice())
    raw.attach()
    transport = Transport(domain, 0)
    with pytest.raises(ConnectionFailed, match="does not connect"):
        transport.connect(0.3)
    transport.close()
    raw.stop()


def test_a_backend_that_closes_every_connection_is_believed_in_the_end(domain: Domain, directory: Path) -> None:
    class Refusing(RawBackend):
        def run(self) -> None:
            while self.await_frontend(State.INITIALISED):
                self.connections += 1
                self.store.write(f"{self.path}/error", "bad_magic \x1b[31m")
                self.set_state(State.CLOSED)
                if not self.await_frontend(State.INITIALISING):
                    return
                self.set_state(State.INIT_WAIT)

    with Refusing(directory, ScriptedDevice()) as raw:
        raw.attach(error="")
        raw.store.set_perms(f"{raw.path}/error", ["n0", "r1"])
        transport = Transport(domain, 0)
        with pytest.raises(ConnectionFailed, match=r"bad_magic \\x1b"):
            transport.connect(5.0)
        assert raw.connections == 3
        transport.close()


def test_a_state_that_flutters_does_not_hold_the_driver_past_its_deadline(domain: Domain, directory: Path) -> None:
    class Fluttering(RawBackend):
        def run(self) -> None:
            while not self._stopping.is_set():
                for state in (State.INITIALISING, State.CONNECTED, State.CLOSING):
                    self.set_state(state)

    with Fluttering(directory, ScriptedDevice()) as raw:
        raw.attach(state="1")
        transport = Transport(domain, 0)
        start = time.monotonic()
        with pytest.raises(ConnectionFailed):
            transport.connect(0.5)
        assert time.monotonic() - start < LATE / 2
        transport.close()


def test_a_device_taken_away_while_connecting_is_gone(domain: Domain, directory: Path) -> None:
    raw = RawBackend(directory, ScriptedDevice())
    raw.attach(online="0", state="5")
    transport = Transport(domain, 0)
    with pytest.raises(DeviceGone):
        transport.connect(5.0)
    assert raw.frontend_state() is State.CLOSED
    with pytest.raises(DeviceGone):
        transport.connect(5.0)
    raw.stop()


def test_a_vanished_directory_is_not_brought_back(domain: Domain, directory: Path) -> None:
    with RawBackend(directory, ScriptedDevice()) as raw:
        raw.attach()
        device = RngDevice(domain, 0)
        raw.store.rm(raw.path)
        raw.store.rm(raw.frontend_path)
        device.close()
        assert raw.frontend_node("state") is None
