"""The hostile driver of tests/threats over a real channel: it breaks its own device, and nothing else in dom0."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator

import pytest

from cpp_ring.store import Store
from emulator.store_paths import State, backend_dir, frontend_dir
from tests import hostile_driver
from tests.xen.domu import Domu, GuestAgent
from tests.xen.serving import PATIENCE, Emulator, await_state

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


OFFER = """
import json, sys
from cpp_ring import Frontend
from guest.hypervisor import open_xen
hypervisor = open_xen().hypervisor
frontend, arena = Frontend(hypervisor, 0), hypervisor.share(0, 1)
print(json.dumps({
    "version": 1, "fe-to-be-ref": frontend.fe_to_be_ref, "be-to-fe-ref": frontend.be_to_fe_ref,
    "event-channel": frontend.event_channel, "arena-ref": arena.first_ref, "arena-pages": arena.pages,
}), flush=True)
sys.stdin.read()
"""
"""What a frontend offers, as long as its input is open."""


@pytest.fixture(scope="module")
def offer(domu: Domu) -> Iterator[dict[str, int]]:
    process = domu.popen(["python3", "-c", OFFER])
    yield json.loads(process.read_line(PATIENCE))
    process.close_stdin()
    assert process.wait() == 0, process.stderr


@pytest.mark.parametrize(
    ("node", "value", "state", "says"),
    [
        ("version", "1", State.CONNECTED, ""),  # as it should be
        ("fe-to-be-ref", "4294967295", State.CLOSED, "host 22 .* from reference 4294967295"),  # never granted
        ("be-to-fe-ref", "4294967295", State.CLOSED, "host 22 .* from reference 4294967295"),
        ("fe-to-be-ref", "-1", State.CLOSED, "store fe-to-be-ref"),
        ("event-channel", "4000", State.CLOSED, "host 22 .* port 4000"),  # no port of this domain
        ("event-channel", "9" * 20, State.CLOSED, "store event-channel"),
        ("version", "2", State.CLOSED, "store version"),
        ("arena-ref", "ref", State.CLOSED, "store arena-ref"),
    ],
)
def test_nodes_that_lie_close_their_device_only(
    node: str, value: str, state: State, says: str, offer: dict[str, int], domu: Domu, dom0: Store, emulator: Emulator,
    stranger: GuestAgent,
) -> None:  # fmt: skip
    base = frontend_dir(domu.domid, STORE_VICTIM)
    # As the domain writes them, by its own way to the store.
    dom0.write(f"{base}/state", "1")
    await_state(dom0, domu.domid, State.INIT_WAIT, STORE_VICTIM)
    nodes = {**offer, node: value, "state": 3}
    words = [str(part) for name, content in nodes.items() for part in (f"{base}/{name}", content)]
    code, output = domu.run(["xenstore-write", "--", *words])
    assert code == 0, output
    await_state(dom0, domu.domid, state, STORE_VICTIM)
    error = dom0.read_optional(f"{backend_dir(0, domu.domid, STORE_VICTIM)}/error")
    assert re.match(says, error or ""), error
    assert len(stranger("rng", dev=0, size=16)["data"]) == 32
