"""The hostile driver of tests/threats over a real channel: it breaks its own device, and nothing else in dom0."""

from __future__ import annotations

import contextlib
import errno
import inspect
import json
import re
from collections.abc import Iterator

import pytest

from cpp_ring import EventChannels, HostError, XenHypervisor
from cpp_ring.store import Store
from emulator.store_paths import State, backend_dir, frontend_dir
from tests import hostile_driver
from tests.xen.domu import Domu, GuestAgent
from tests.xen.serving import MIB, PATIENCE, Emulator, await_state

NEIGHBOUR, STORE_VICTIM, RNG, BLK, NET = range(5)
VICTIMS = (RNG, BLK, NET)


@pytest.fixture(scope="module")
def stranger(other: Domu) -> Iterator[GuestAgent]:
    """A driver in another domain."""
    with Emulator(other, "rng"), other.agent() as guest:
        guest("connect", dev=0)
        yield guest


@pytest.fixture(scope="module")
def emulator(domu: Domu, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    directory = tmp_path_factory.mktemp("devices")
    image = directory / "disk.img"
    image.write_bytes(bytes(MIB))
    specs = ["rng", "rng", "rng", f"blk,path={image}", f"net,socket={directory / 'card'},peer={directory / 'nobody'}"]
    # Awake for longer than the domU's turn on the CPU that they may share: some lies are for who looks by himself.
    with Emulator(domu, *specs, options=("--poll-us", "5000")) as started:
        yield started


@pytest.mark.parametrize("attack", hostile_driver.ATTACKS, ids=lambda attack: attack.__name__)
def test_a_hostile_driver_breaks_its_own_device_only(
    attack: hostile_driver.Attack, domu: Domu, emulator: Emulator, stranger: GuestAgent
) -> None:
    source = inspect.getsource(hostile_driver)
    # Each attack on another kind of device, and on yet another one in a domU of the other kind.
    turn = hostile_driver.ATTACKS.index(attack) + (domu.kind == "pv")
    victim = VICTIMS[turn % len(VICTIMS)]
    code, output = domu.run(
        ["python3", "-c", source, attack.__name__, str(victim), str(NEIGHBOUR)], timeout=hostile_driver.PATIENCE + 30
    )
    assert code == 0, output
    assert len(stranger("rng", dev=0, size=64)["data"]) == 128


OFFER = """
import json, sys, threading
from cpp_ring import EventChannels, Frontend
from guest.hypervisor import open_xen
other = int(sys.argv[1])
hypervisor = open_xen().hypervisor
frontend, arena, channels = Frontend(hypervisor, 0), hypervisor.share(0, 1), EventChannels(hypervisor)
elsewhere, withdrawn = hypervisor.share(other, 1), hypervisor.share(0, 1)
own = channels.alloc_unbound(0)
print(json.dumps({
    "version": 1, "fe-to-be-ref": frontend.fe_to_be_ref, "be-to-fe-ref": frontend.be_to_fe_ref,
    "event-channel": frontend.event_channel, "arena-ref": arena.first_ref, "arena-pages": arena.pages,
    "OWN_PORT": own, "PORT_FOR_ANOTHER": channels.alloc_unbound(other), "REF_FOR_ANOTHER": elsewhere.first_ref,
    "WITHDRAWN_REF": withdrawn.first_ref,
}), flush=True)
withdrawn.close()
calm = threading.Event()
def storm():
    while not calm.is_set():
        channels.notify(own)
if sys.stdin.readline() == "storm\\n":
    sender = threading.Thread(target=storm)
    sender.start()
    sys.stdin.read()
    calm.set()
    sender.join()
"""
"""What a frontend offers as long as its input is open. After a line `storm`, events without end on its own port."""

NODES = ("version", "fe-to-be-ref", "be-to-fe-ref", "event-channel", "arena-ref", "arena-pages")


class Offer:
    """What a domain that runs `OFFER` has to offer."""

    def __init__(self, domu: Domu, other: Domu, store: Store) -> None:
        self._domu = domu
        self._store = store
        self.process = domu.popen(["python3", "-c", OFFER, str(other.domid)])
        self.values: dict[str, int] = json.loads(self.process.read_line(PATIENCE))

    def make(self, **changed: str | None) -> None:
        """As the domain writes it, by its own way to the store; a value may be the name of another one, or None: the
        node is not there."""
        base = frontend_dir(self._domu.domid, STORE_VICTIM)
        self._store.write(f"{base}/state", "1")
        await_state(self._store, self._domu.domid, State.INIT_WAIT, STORE_VICTIM)
        nodes: dict[str, object] = {name: self.values[name] for name in NODES}
        for name, value in changed.items():
            if value is None:
                del nodes[name.replace("_", "-")]
                self._store.rm(f"{base}/{name.replace('_', '-')}")
            else:
                nodes[name.replace("_", "-")] = self.values.get(value, value)
        nodes["state"] = int(State.INITIALISED)
        words = [str(part) for name, content in nodes.items() for part in (f"{base}/{name}", content)]
        code, output = self._domu.run(["xenstore-write", "--", *words])
        assert code == 0, output

    def close(self) -> None:
        # What it granted last has a port of its own choice: nobody hears that it is gone, and the device would wait.
        self._store.write(f"{frontend_dir(self._domu.domid, STORE_VICTIM)}/state", str(int(State.CLOSED)))
        self.process.close_stdin()
        assert self.process.wait() == 0, self.process.stderr


@pytest.fixture(scope="module")
def offer(domu: Domu, other: Domu, dom0: Store, emulator: Emulator) -> Iterator[Offer]:
    with contextlib.closing(Offer(domu, other, dom0)) as made:
        yield made


@pytest.mark.parametrize(
    ("node", "value", "state", "says"),
    [
        ("version", "1", State.CONNECTED, ""),  # as it should be
        ("fe-to-be-ref", "4294967295", State.CLOSED, "host 22 .* from reference 4294967295"),  # never granted
        ("be-to-fe-ref", "4294967295", State.CLOSED, "host 22 .* from reference 4294967295"),
        ("fe-to-be-ref", "REF_FOR_ANOTHER", State.CLOSED, "host 22 .* from reference"),
        ("be-to-fe-ref", "WITHDRAWN_REF", State.CLOSED, "host 22 .* from reference"),
        ("fe-to-be-ref", "-1", State.CLOSED, "store fe-to-be-ref"),
        ("event-channel", "4000", State.CLOSED, "host 22 .* port 4000"),  # no port of this domain
        ("event-channel", "PORT_FOR_ANOTHER", State.CLOSED, "host 22 .* port"),
        ("event-channel", "9" * 20, State.CLOSED, "store event-channel"),
        ("version", "2", State.CLOSED, "store version"),
        ("arena-ref", "ref", State.CLOSED, "store arena-ref"),
    ],
)
def test_nodes_that_lie_close_their_device_only(
    node: str, value: str, state: State, says: str, offer: Offer, domu: Domu, dom0: Store, emulator: Emulator,
    stranger: GuestAgent,
) -> None:  # fmt: skip
    offer.make(**{node.replace("-", "_"): value})
    await_state(dom0, domu.domid, state, STORE_VICTIM)
    error = dom0.read_optional(f"{backend_dir(0, domu.domid, STORE_VICTIM)}/error")
    assert re.match(says, error or ""), error
    assert len(stranger("rng", dev=0, size=16)["data"]) == 32


def test_a_node_that_is_missing_closes_its_device_and_is_named(
    offer: Offer, domu: Domu, dom0: Store, emulator: Emulator, guest: GuestAgent
) -> None:
    guest("connect", dev=NEIGHBOUR)
    offer.make()
    await_state(dom0, domu.domid, State.CONNECTED, STORE_VICTIM)
    for node in ("version", "fe-to-be-ref", "be-to-fe-ref", "event-channel", "arena-ref"):
        says = f"store {node}: missing"
        offer.make(**{node.replace("-", "_"): None})
        await_state(dom0, domu.domid, State.CLOSED, STORE_VICTIM)
        assert dom0.read_optional(f"{backend_dir(0, domu.domid, STORE_VICTIM)}/error") == says
        # The log has a limit, which the tests before may have reached.
        assert len([line for line in emulator.lines if says in line]) <= 1, emulator.lines
        assert len(guest("rng", dev=NEIGHBOUR, size=16)["data"]) == 32
    # Nothing of it is held against the domain; an arena is not required.
    offer.make(arena_pages=None)
    await_state(dom0, domu.domid, State.CONNECTED, STORE_VICTIM)
    assert dom0.read_optional(f"{backend_dir(0, domu.domid, STORE_VICTIM)}/error") is None
    guest("close", dev=NEIGHBOUR)


def test_a_backends_event_channels_reach_its_frontends_domain_only(domu: Domu, other: Domu, offer: Offer) -> None:
    channels = EventChannels(XenHypervisor(0))
    port = channels.bind_interdomain(domu.domid, offer.values["OWN_PORT"])
    with pytest.raises(HostError) as raised:
        channels.bind_interdomain(other.domid, 1)
    assert raised.value.errno == errno.EACCES
    channels.unbind(port)


def test_a_third_domain_sees_nothing_of_a_device(
    domu: Domu, other: Domu, dom0: Store, offer: Offer, emulator: Emulator
) -> None:
    offer.make()
    await_state(dom0, domu.domid, State.CONNECTED, STORE_VICTIM)
    ours, theirs = backend_dir(0, domu.domid, STORE_VICTIM), frontend_dir(domu.domid, STORE_VICTIM)
    for path in (f"{ours}/state", f"{ours}/spec", f"{theirs}/state", f"{theirs}/event-channel"):
        assert dom0.read(path)
        for command in (["xenstore-read", path], ["xenstore-write", path, "0"]):
            code, output = other.run(command)
            assert code != 0, f"{command}: {output}"
    # What is not for the frontend's eyes, and what it may see and not change.
    assert domu.run(["xenstore-read", f"{ours}/spec"]).code != 0
    assert domu.run(["xenstore-read", f"{ours}/state"]).code == 0
    for path in (f"{ours}/state", f"{ours}/online", f"{theirs}/backend-id"):
        before = dom0.read(path)
        code, output = domu.run(["xenstore-write", path, "9"])
        assert code != 0, f"{path}: {output}"
        assert dom0.read(path) == before


def test_events_without_end_cost_their_sender_and_nobody_else(
    domu: Domu, offer: Offer, dom0: Store, emulator: Emulator, stranger: GuestAgent
) -> None:
    offer.make(event_channel="OWN_PORT")
    await_state(dom0, domu.domid, State.CONNECTED, STORE_VICTIM)
    offer.process.write(b"storm\n")
    with domu.agent() as guest:
        guest("connect", dev=NEIGHBOUR)
        for _ in range(5):
            assert len(guest("rng", dev=NEIGHBOUR, size=64)["data"]) == 128
            assert len(stranger("rng", dev=0, size=64)["data"]) == 128
    assert offer.process.returncode is None, offer.process.stderr
    assert dom0.read(f"{backend_dir(0, domu.domid, STORE_VICTIM)}/state") == str(int(State.CONNECTED))
