"""The failures that tests ask for come when they were asked for, to whom, and no more often."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from emulator.local import Control, MachineError, wire
from emulator.local.wire import ANY
from tests.local.client import Client


@pytest.fixture
def control(machine: Path) -> Iterator[Control]:
    with Control(machine) as control:
        yield control


def test_the_nth_map_fails_and_leaves_nothing_behind(machine: Path, control: Control) -> None:
    with Client(machine, 1) as guest, Client(machine, 0) as backend:
        first, _ = guest.share(0)
        control.fail(wire.GRANT_MAP, errno.ENOMEM, after=2)
        backend.map(1, first)
        backend.map(1, first)
        assert backend.refused(wire.GRANT_MAP, 1, first, 1, 0) == errno.ENOMEM
        backend.map(1, first)


def test_every_map_after_the_nth_fails_until_the_plan_is_cleared(machine: Path, control: Control) -> None:
    with Client(machine, 1) as guest, Client(machine, 0) as backend:
        first, _ = guest.share(0)
        control.fail(wire.GRANT_MAP, errno.EIO, after=1, times=ANY)
        backend.map(1, first)
        for _ in range(5):
            assert backend.refused(wire.GRANT_MAP, 1, first, 1, 0) == errno.EIO
        control.clear()
        backend.map(1, first)


def test_a_plan_can_be_for_one_domain(machine: Path, control: Control) -> None:
    with Client(machine, 1) as guest, Client(machine, 2) as neighbour:
        control.fail(wire.GRANT_SHARE, errno.ENOSPC, times=ANY, domid=1)
        assert guest.refused(wire.GRANT_SHARE, 0, 1, 0) == errno.ENOSPC
        neighbour.share(0)


def test_any_operation_can_be_made_to_fail(machine: Path, control: Control) -> None:
    with Client(machine, 1) as guest:
        control.fail(ANY, errno.EIO, times=2, domid=1)
        assert guest.refused(wire.GRANT_SHARE, 0, 1, 0) == errno.EIO
        assert guest.refused(wire.EVTCHN_ALLOC_UNBOUND, 0) == errno.EIO
        guest.alloc_unbound(0)


def test_a_late_answer_keeps_only_its_own_client_waiting(machine: Path, control: Control) -> None:
    with Client(machine, 1) as guest, Client(machine, 2) as neighbour:
        control.delay(wire.GRANT_SHARE, 60_000, times=1, domid=1)
        guest.socket.send(wire.REQUEST.pack(wire.GRANT_SHARE, 0, 1, 0, 0, 0, 0, 0))
        neighbour.share(0)
        guest.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            guest.socket.recv(1)


def test_a_late_answer_comes(machine: Path, control: Control) -> None:
    with Client(machine, 1) as guest:
        control.delay(wire.GRANT_SHARE, 5, times=2)
        control.fail(wire.GRANT_SHARE, errno.EIO, after=1)
        first, page = guest.share(0)
        assert first == 8
        assert page.memory[0] == 0
        assert guest.refused(wire.GRANT_SHARE, 0, 1, 0) == errno.EIO


def test_a_storm_raises_a_port_again_and_again(machine: Path, control: Control) -> None:
    with Client(machine, 1) as guest, Client(machine, 0) as backend:
        bound = backend.bind(1, guest.alloc_unbound(0).port)
        assert bound.wait()
        control.storm(0, bound.port, ANY)
        for _ in range(100):
            assert bound.wait()
        guest.share(0)  # the broker serves meanwhile
        control.clear()


def test_a_storm_ends_by_itself_or_with_its_port(machine: Path, control: Control) -> None:
    with Client(machine, 1) as guest, Client(machine, 0) as backend:
        bound = backend.bind(1, guest.alloc_unbound(0).port)
        assert bound.wait()
        control.storm(0, bound.port, 3)
        assert bound.wait()
        control.storm(0, bound.port, ANY)
        backend.call(wire.EVTCHN_CLOSE, bound.port)
        with pytest.raises(MachineError, match="storm port"):
            control.storm(0, bound.port, 1)


def test_plans_are_limited(control: Control) -> None:
    for _ in range(256):
        control.fail(wire.GRANT_MAP, errno.EIO, domid=3)
    with pytest.raises(MachineError, match="no space"):
        control.fail(wire.GRANT_MAP, errno.EIO, domid=3)


def test_a_plan_that_fails_everything_can_still_be_cleared(machine: Path, control: Control) -> None:
    control.fail(ANY, errno.EIO, times=ANY)
    with Control(machine) as another:
        another.clear()
    with Client(machine, 1) as guest:
        guest.share(0)
