"""The hostile driver of tests/threats over a real channel: it breaks its own device, and nothing else in dom0."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest

from cpp_ring.store import Store
from emulator.store_paths import State, backend_dir, frontend_dir
from tests import hostile_driver
from tests.xen.domu import Domu, GuestAgent
from tests.xen.serving import Emulator, await_state

VICTIM, NEIGHBOUR, STORE_VICTIM = range(3)


@pytest.fixture(scope="module")
def stranger(other: Domu) -> Iterator[GuestAgent]:
    """A driver in another domain."""
    with Emulator(other, "rng"), other.agent() as guest:
        guest("connect", dev=0)
        yield guest


@pytest.fixture(scope="module")
def emulator(domu: Domu) -> Iterator[Emulator]:
    # Awake for longer than the domU's turn on the CPU that they may share: some lies are for who looks by himself.
    with Emulator(domu, "rng", "rng", "rng", options=("--poll-us", "5000")) as started:
        yield started


@pytest.mark.parametrize("attack", hostile_driver.ATTACKS, ids=lambda attack: attack.__name__)
def test_a_hostile_driver_breaks_its_own_device_only(
    attack: hostile_driver.Attack, domu: Domu, emulator: Emulator, stranger: GuestAgent
) -> None:
    source = inspect.getsource(hostile_driver)
    code, output = domu.run(
        ["python3", "-c", source, attack.__name__, str(VICTIM), str(NEIGHBOUR)], timeout=hostile_driver.PATIENCE + 30
    )
    assert code == 0, output
    assert len(stranger("rng", dev=0, size=64)["data"]) == 128


@pytest.mark.parametrize(
    ("node", "value"),
    [
        ("fe-to-be-ref", "4294967295"),  # never granted
        ("fe-to-be-ref", "-1"),
        ("event-channel", "4000"),  # no port of this domain
        ("event-channel", "9" * 20),
        ("version", "2"),
        ("arena-ref", "ref"),
    ],
)
def test_nodes_that_lie_close_their_device_only(
    node: str, value: str, domu: Domu, dom0: Store, emulator: Emulator, stranger: GuestAgent
) -> None:
    base = frontend_dir(domu.domid, STORE_VICTIM)
    good = {"version": "1", "fe-to-be-ref": "8", "be-to-fe-ref": "9", "event-channel": "1", "arena-pages": "1"}
    # As the domain writes them, by its own way to the store.
    dom0.write(f"{base}/state", "1")
    await_state(dom0, domu.domid, State.INIT_WAIT, STORE_VICTIM)
    nodes = {**good, "arena-ref": "10", node: value, "state": "3"}
    code, output = domu.run(["xenstore-write", "--", *(part for k, v in nodes.items() for part in (f"{base}/{k}", v))])
    assert code == 0, output
    await_state(dom0, domu.domid, State.CLOSED, STORE_VICTIM)
    error = dom0.read(f"{backend_dir(0, domu.domid, STORE_VICTIM)}/error")
    assert error.startswith(("store ", "host ")), error
    assert len(stranger("rng", dev=0, size=16)["data"]) == 32
