"""Threat 30 for the guest's kernel: a backend that lies costs its device and one line in the log, nothing else."""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cpp_ring import MappedPages, XenHypervisor, xen
from cpp_ring.store import Store
from guest import messages
from guest.xenbus import State
from tests.raw_backend import RawBackend
from tests.scripted_device import ScriptedDevice
from tests.xen.domu import Domu
from tests.xen.linux_guest import deadline, module, shell
from tests.xen.serving import until

DEVICES = "/sys/bus/virtio/devices"
SIZE = 8
NET_F_MAC = 5
GRANT = 1 << 63
MAX_KEPT = 16
# What is between virtio and the pages is the same in both kinds of domain.
ONE_KIND = pytest.mark.parametrize("domu", ["pv"], indirect=True)


@pytest.fixture(scope="module")
def linux(domu: Domu) -> Iterator[Domu]:
    with module(domu) as loaded:
        yield loaded


class Liar(RawBackend):
    """An entropy source in dom0 that is made by hand; `lie` gets its virtqueue once there is a request in it."""

    def __init__(
        self, domu: Domu, lie: Callable[[Queue], None] | None = None, device: ScriptedDevice | None = None
    ) -> None:
        device = device or ScriptedDevice(queue_sizes=(SIZE,))
        super().__init__(Path(), device, frontend=domu.domid, hypervisor=XenHypervisor(0))
        self._lie = lie

    def open_store(self) -> Store:
        return xen.open_store()

    def idle(self) -> None:
        if self._lie is None or self.device.status != 15:
            return
        queue = Queue(self)
        if queue.available():
            self._lie(queue)
            self._lie = None
            self.events.notify(self.queue_port(0))


class Queue:
    """The device's side of the queue: what is read-only for it, and the used ring."""

    def __init__(self, backend: Liar) -> None:
        self.size, descriptors, driver, device = backend.device.queues[0]
        read = backend.hypervisor.map(backend.frontend, (descriptors & ~GRANT) >> 12, 1, False)
        self._read = read.memory
        self._avail = driver - descriptors
        self.used = backend.hypervisor.map(backend.frontend, (device & ~GRANT) >> 12, 1).memory

    def available(self) -> int:
        index: int = struct.unpack_from("<H", self._read, self._avail + 2)[0]
        return index

    def head(self) -> int:
        head: int = struct.unpack_from("<H", self._read, self._avail + 4)[0]
        return head

    def length(self) -> int:
        length: int = struct.unpack_from("<I", self._read, 16 * self.head() + 8)[0]
        return length

    def put(self, index: int, *elements: tuple[int, int]) -> None:
        for number, element in enumerate(elements):
            struct.pack_into("<II", self.used, 4 + 8 * number, *element)
        struct.pack_into("<H", self.used, 2, index)


@contextlib.contextmanager
def serving(linux: Domu, backend: Liar, **nodes: str) -> Iterator[Liar]:
    backend.attach(**nodes)
    with backend:
        yield backend
    # Else the next device of this number is taken for this one.
    until(lambda: nothing(linux, "/sys/bus/xen/devices/virtio-msg-*"), "the xenbus device is still there")


def nothing(linux: Domu, pattern: str) -> bool:
    """Whether no path matches. (`ls` fails at one that vanishes while it looks.)"""
    return shell(linux, f"echo {pattern}") == pattern


def broken(linux: Domu, before: int) -> None:
    """One device was given up since, in one line, and the kernel is well."""
    lines: list[str] = []

    def said() -> bool:
        lines[:] = shell(linux, "dmesg").splitlines()[before:]
        return any("the device is broken" in line for line in lines)

    until(said, f"no line says that it is broken: {lines}")
    assert sum("is broken" in line for line in lines) == 1, lines
    healthy(linux, before)


def healthy(linux: Domu, before: int) -> None:
    text = "\n".join(shell(linux, "dmesg").splitlines()[before:])
    assert not any(word in text for word in ("BUG", "WARNING", "Oops", "Call Trace", "stall", "lockup")), text


def lines_of(linux: Domu) -> int:
    return len(shell(linux, "dmesg").splitlines())


@pytest.fixture
def before(linux: Domu) -> Iterator[int]:
    lines = lines_of(linux)
    yield lines
    # The xenbus device is out of sight before its driver is done.
    until(lambda: nothing(linux, f"{DEVICES}/*"), "the virtio device is still there")
    healthy(linux, lines)


USED = {
    "an id past the ring": lambda queue: queue.put(1, (SIZE, 0)),
    "a large id": lambda queue: queue.put(1, (0xFFFFFFFF, 0)),
    "an id not in flight": lambda queue: queue.put(1, ((queue.head() + 1) % SIZE, 0)),
    "a length past the buffer": lambda queue: queue.put(1, (queue.head(), queue.length() + 1)),
    "an index ahead of what is in flight": lambda queue: queue.put(SIZE, *[(queue.head(), 0)] * SIZE),
    "an index that runs backwards": lambda queue: queue.put(0xFFFF),
}


@ONE_KIND
@pytest.mark.parametrize("what", USED)
def test_a_used_ring_that_lies_breaks_the_device(linux: Domu, before: int, what: str) -> None:
    with serving(linux, Liar(linux, USED[what])):
        broken(linux, before)


ANSWERS: dict[str, Callable[[bytearray], bytes | bytearray | None]] = {
    "a token of nobody": lambda message: message[:4] + b"\x34\x12" + message[6:],
    "another message": lambda message: message[:1] + bytes([message[1] ^ 1]) + message[2:],
    "a request": lambda message: b"\0" + message[1:],
    "too short": lambda message: message[:4],
    "a size that is not its own": lambda message: message[:6] + b"\xff\xff" + message[8:],
    "too much": lambda message: message + bytes(200),
    "nothing": lambda message: None,
}


@ONE_KIND
@pytest.mark.parametrize("what", ANSWERS)
def test_an_answer_that_lies_breaks_the_device(linux: Domu, before: int, what: str) -> None:
    backend = Liar(linux)
    backend.corrupt = ANSWERS[what]
    with serving(linux, backend):
        broken(linux, before)


@ONE_KIND
def test_a_config_space_that_changes_at_each_look_does_not_keep_its_driver_for_ever(linux: Domu, before: int) -> None:
    card = ScriptedDevice(1, features=1 << NET_F_MAC, config=bytes(range(2, 14)), queue_sizes=(SIZE, SIZE))
    backend = Liar(linux, device=card)

    def restless(payload: bytes) -> bytes:
        answer = card.honest(messages.GET_CONFIG, payload)
        backend.set_generation(card.generation + 1)  # so the answer is of a generation that is over
        return answer

    card.lies[messages.GET_CONFIG] = restless
    with serving(linux, backend):
        broken(linux, before)


class Keeper(Liar):
    """Ends connections. Keeps all their pages, or those of the first and of the last."""

    def __init__(self, domu: Domu, connections: int, all_of_them: bool) -> None:
        super().__init__(domu)
        self.kept: list[MappedPages | None] = []
        self._left = connections
        self._all = all_of_them

    def idle(self) -> None:
        if self.device.status != 15 or not self._left:  # a driver that is content has not lost hope
            return
        self._left -= 1
        self.kept = [*(self.kept if self._all else self.kept[:2]), self.fe, self.be]
        self.device.status = 0
        self.die()
        self.set_state(State.INIT_WAIT)

    def ended(self) -> bool:
        return self._left == 0 and self.device.status == 15


@ONE_KIND
def test_a_backend_that_keeps_the_pages_of_each_connection_is_given_up(linux: Domu, before: int) -> None:
    backend = Keeper(linux, 2 * MAX_KEPT, all_of_them=True)
    with serving(linux, backend):
        broken(linux, before)
        # What it has just mapped, of an offer that is taken back, counts as well.
        assert MAX_KEPT - 2 <= len(backend.kept) <= MAX_KEPT
        backend.kept.clear()


@ONE_KIND
def test_a_backend_that_lets_go_of_pages_late_is_served_on(linux: Domu, before: int) -> None:
    backend = Keeper(linux, MAX_KEPT // 2 + 1, all_of_them=False)
    with serving(linux, backend):
        until(backend.ended, f"no connection after {backend.connections}:\n{shell(linux, 'dmesg | tail')}")
        backend.kept.clear()
    assert not any("is broken" in line for line in shell(linux, "dmesg").splitlines()[before:])


@pytest.mark.parametrize("answers", [0, 1, 3, 8])
def test_random_bytes_all_over_the_page_do_no_harm(linux: Domu, before: int, answers: int) -> None:
    chosen = random.Random(answers)
    backend = Liar(linux)

    def scribble(message: bytearray) -> bytearray:
        if len(backend.device.seen) > answers:
            backend.page[:] = chosen.randbytes(4096)
        return message

    backend.corrupt = scribble
    with deadline(linux, 300), serving(linux, backend):
        until(lambda: backend.connections > 0, "it was not connected to")
        shell(linux, "sleep 0.5")
        healthy(linux, before)


@ONE_KIND
@pytest.mark.parametrize(
    "nodes",
    [
        {"max_queues": "4294967295"},
        {"max_queues": "-1"},
        {"device_id": "nonsense"},
        {"versions": "7 8 9"},
        {"versions": "1" * 2000},  # oxenstored takes 2048
    ],
)
def test_nonsense_in_the_store_does_no_harm(linux: Domu, before: int, nodes: dict[str, str]) -> None:
    with serving(linux, Liar(linux), **nodes):
        shell(linux, "sleep 0.5")
        healthy(linux, before)


def test_events_without_end_do_not_keep_the_guest_from_its_work(linux: Domu, before: int) -> None:
    backend = Liar(linux)
    with serving(linux, backend):
        until(lambda: backend.device.status == 15, "it was not probed")
        port = backend.queue_port(0)
        for _ in range(20000):
            backend.events.notify(port)
            backend.events.notify(backend.port)
        assert shell(linux, "echo well", timeout=20) == "well"
