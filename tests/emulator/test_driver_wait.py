"""A domain without a driver is one line in the log, once for each time that somebody could have come and did not."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from cpp_ring.store import Store
from emulator import toolstack
from emulator.driver_wait import NO_DRIVER_SECONDS, DriverWait
from emulator.loop import Callback, EventLoop, Timer
from emulator.spec import parse
from emulator.store_paths import State
from guest.rng import RngDevice
from tests.emulator.machines import PATIENCE, Machine
from tests.emulator.served import Served, connection

SAYS = "the domain has not begun to connect for 30 s"


class HeldLoop(EventLoop):
    """Holds the timers of the wait until the test lets their time pass."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Timer] = []

    def call_later(self, seconds: float, callback: Callback) -> Timer:
        if seconds != NO_DRIVER_SECONDS:
            return super().call_later(seconds, callback)
        self.held.append(Timer(callback))
        return self.held[-1]

    def expire(self) -> None:
        """In the loop's thread, or without one."""
        held, self.held = self.held, []
        for timer in held:
            assert timer.callback
            timer.callback()

    def pass_time(self) -> None:
        """From another thread: twice the time, since a wait that began in the first half is over then."""
        for _ in range(2):
            done = threading.Event()
            self.post(self.expire)
            self.post(done.set)
            assert done.wait(PATIENCE)


class Offered:
    """An rng device, offered to the machine's domain."""

    def __init__(self, machine: Machine, loop: HeldLoop, caplog: pytest.LogCaptureFixture) -> None:
        self._machine = machine
        self._caplog = caplog
        self.loop = loop
        self.devid = toolstack.attach(machine.store, 0, machine.domid, parse("rng"))
        self.served = Served(machine, Store(connection(machine)), loop)
        self.await_state(State.INIT_WAIT)

    def await_state(self, state: State) -> None:
        self._machine.await_state(state, self.devid)

    def use(self) -> RngDevice:
        device = RngDevice(self._machine.domain(), self.devid)
        assert len(device.read(16)) == 16
        return device

    def write_state(self, state: State) -> None:
        with self._machine.frontend_store() as store:
            store.write(f"{self._machine.frontend_path(self.devid)}/state", str(int(state)))

    def lines(self) -> list[str]:
        self.loop.pass_time()
        return [record.getMessage() for record in self._caplog.records if SAYS in record.getMessage()]


@pytest.fixture
def offered(machine: Machine, caplog: pytest.LogCaptureFixture) -> Iterator[Offered]:
    device = Offered(machine, HeldLoop(), caplog)
    yield device
    device.served.stop()


def test_a_domain_without_a_driver_is_said_once(machine: Machine, offered: Offered) -> None:
    (line,) = offered.lines()
    assert f"({machine.frontend_path(offered.devid)}/state is 1): load virtio_msg_xen there" in line
    assert "dmesg" in line
    assert len(offered.lines()) == 1


def test_of_a_driver_that_comes_in_time_nothing_is_said(machine: Machine, offered: Offered) -> None:
    with offered.use():
        assert offered.lines() == []
    # By its nodes or by its live byte, whichever is seen first.
    machine.until(lambda: machine.node("state", offered.devid) in ("2", "6"))
    assert offered.lines() == []  # it went as it should


def test_it_is_said_again_when_a_driver_was_there_and_none_comes_back(offered: Offered) -> None:
    assert len(offered.lines()) == 1
    first = offered.use()
    assert len(offered.lines()) == 1
    first.transport.frontend.close()  # as if its kernel died: its nodes stay as they are
    offered.await_state(State.INIT_WAIT)
    said = offered.lines()
    assert len(said) == 2
    assert "/state is 4): " in said[1]
    offered.write_state(State.INITIALISING)  # the next kernel looks for its devices, without a driver for this one
    assert len(offered.lines()) == 2
    first.close()


def test_of_a_device_that_is_taken_back_nothing_is_said(machine: Machine, offered: Offered) -> None:
    machine.command("detach", str(machine.domid), str(offered.devid))
    assert offered.lines() == []


class Wait:
    """A `DriverWait` over a store that is nothing but `state`."""

    def __init__(self) -> None:
        self.state: State | None = State.INITIALISING
        self.loop = HeldLoop()
        log = logging.getLogger("virtio-dm wait")
        self.wait = DriverWait(self.loop, log, "/d/state", lambda: self.wait.follow(self.state))
        self.wait.follow(self.state)


@pytest.fixture
def wait() -> Iterator[Wait]:
    made = Wait()
    yield made
    made.loop.close()


def test_what_came_at_the_last_moment_counts(wait: Wait, caplog: pytest.LogCaptureFixture) -> None:
    wait.state = State.INITIALISED  # in the store; nobody has looked yet
    wait.loop.expire()
    assert caplog.messages == []
    wait.loop.expire()
    assert "(/d/state is 3): it is paused, or its driver is gone or hangs" in caplog.text


def test_a_frontend_that_moves_all_the_time_costs_one_timer(wait: Wait, caplog: pytest.LogCaptureFixture) -> None:
    for state in [State.INITIALISED, None, State.INITIALISING] * 100:
        wait.wait.follow(state)
    assert len(wait.loop.held) == 1
    assert caplog.messages == []


def test_a_frontend_that_moves_after_it_was_said_is_not_said_again(
    wait: Wait, caplog: pytest.LogCaptureFixture
) -> None:
    wait.loop.expire()
    assert len(caplog.messages) == 1
    for state in (State.INITIALISED, None, State.INITIALISING):
        wait.state = state
        wait.wait.follow(state)
        wait.loop.expire()
    assert wait.loop.held == []
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("state", [State.CLOSING, State.CLOSED, None])
def test_a_frontend_that_left_is_not_waited_for(
    wait: Wait, caplog: pytest.LogCaptureFixture, state: State | None
) -> None:
    wait.state = state
    wait.wait.follow(state)
    wait.loop.expire()
    assert wait.loop.held == []
    assert caplog.messages == []


def test_a_frontend_without_its_nodes_is_told_from_others(wait: Wait, caplog: pytest.LogCaptureFixture) -> None:
    wait.state = State.UNKNOWN
    wait.loop.expire()
    wait.loop.expire()
    assert "(/d/state is missing or 0): detach the device and attach it again" in caplog.text
