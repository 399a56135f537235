"""Threat 30: a hostile, broken or dead backend. The driver gets an exception that says so, within its deadline; it
never hangs, never crashes, never takes a lie for an answer.
"""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cpp_ring import ChannelError, ChannelTimeout, PeerDead
from guest import messages
from guest.blk import FLUSH, BlockDevice, Operation
from guest.device import FAILED, FEATURES_OK, VirtioDevice
from guest.errors import (
    BadAnswer,
    ConfigRefused,
    ConnectionFailed,
    DeviceGone,
    DriverError,
    InitialisationFailed,
    NeedsReset,
    RequestFailed,
    RequestTimeout,
    Unsupported,
)
from guest.hypervisor import Domain, open_local
from guest.net import MRG_RXBUF, NetDevice
from guest.rng import RngDevice
from guest.transport import Transport
from guest.xenbus import MAX_QUEUES
from tests.raw_backend import NEEDS_RESET, PROBED, RawBackend, RawQueue, ScriptedDevice, State, local_machine

LATE = 20.0
"""Seconds after which a call that should have ended long before counts as hung."""


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    with local_machine() as path:
        yield path


@pytest.fixture
def domain(directory: Path) -> Domain:
    return open_local(directory, 1)


@pytest.fixture(autouse=True)
def never_hangs() -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < LATE


@pytest.fixture
def backend(directory: Path) -> Iterator[RawBackend]:
    """An honest one, attached and running; each test gives it its lie."""
    with RawBackend(directory, ScriptedDevice(config=bytes(range(64)))) as raw:
        raw.attach()
        yield raw


@pytest.fixture
def transport(domain: Domain, backend: RawBackend) -> Iterator[Transport]:
    connected = Transport(domain, 0, timeout=1.0)
    connected.connect(5.0)
    yield connected
    connected.close()


def get_status(transport: Transport) -> int:
    return messages.status(transport.exchange(messages.GET_DEVICE_STATUS), "GET_DEVICE_STATUS")


# ---- the config ring ----


def patched(offset: int, value: bytes) -> Callable[[bytearray], bytearray]:
    def corrupt(message: bytearray) -> bytearray:
        message[offset : offset + len(value)] = value
        return message

    return corrupt


@pytest.mark.parametrize(
    ("lie", "name"),
    [
        (patched(0, b"\x00"), "bad_type"),
        (patched(0, b"\x03"), "bad_type"),
        (patched(1, b"\x02"), "bad_msg_id"),
        (patched(4, b"\x00\x00"), "bad_token"),
        (patched(4, b"\xff\xff"), "bad_token"),
        (patched(6, b"\xff\xff"), "bad_size"),
        (patched(6, b"\x00\x00"), "bad_size"),
        (lambda message: message[:7], "bad_size"),
        (lambda message: b"", "bad_size"),
    ],
)
def test_an_answer_that_does_not_match_its_request_breaks_the_channel(
    transport: Transport, backend: RawBackend, lie: Callable[[bytearray], bytes | bytearray], name: str
) -> None:
    backend.corrupt = lie
    with pytest.raises(ChannelError) as error:
        get_status(transport)
    assert error.value.name == name
    backend.corrupt = lambda message: message
    assert transport.frontend.broken
    with pytest.raises(ChannelError):
        get_status(transport)


@pytest.mark.parametrize("size", [277, 4096, 1 << 31, 0xFFFFFFFF])
def test_an_answer_longer_than_a_message_is_not_copied(transport: Transport, backend: RawBackend, size: int) -> None:
    def lie(message: bytearray) -> None:
        backend.respond(backend.answered, message, size)

    backend.corrupt = lie
    with pytest.raises(ChannelError) as error:
        get_status(transport)
    assert error.value.name == "bad_size"


@pytest.mark.parametrize("seq", [0, 5, 0x80000000, 0xFFFFFFFF])
def test_an_answer_to_a_request_never_made_breaks_the_channel(
    transport: Transport, backend: RawBackend, seq: int
) -> None:
    assert get_status(transport) == 0

    def lie(message: bytearray) -> None:
        backend.respond(seq, message)

    backend.corrupt = lie
    with pytest.raises(ChannelError) as error:
        get_status(transport)
    assert error.value.name == "bad_seq"


def test_a_silent_backend_costs_the_deadline_and_no_more(transport: Transport, backend: RawBackend) -> None:
    backend.held = True
    transport.timeout = 0.2
    for _ in range(2):
        start = time.monotonic()
        with pytest.raises(ChannelTimeout):
            get_status(transport)
        assert time.monotonic() - start < LATE / 4
    assert transport.frontend.broken


def test_the_late_answer_to_a_request_that_timed_out_is_dropped(transport: Transport, backend: RawBackend) -> None:
    backend.held = True
    transport.timeout = 0.2
    backend.device.lies[messages.GET_DEVICE_STATUS] = struct.pack("<I", 0xDEAD)
    with pytest.raises(ChannelTimeout):
        get_status(transport)
    backend.held = False
    transport.timeout = 5.0
    info = messages.device_info(transport.exchange(messages.GET_DEVICE_INFO))
    assert info.device_id == 4
    assert not transport.frontend.broken


def test_an_answer_with_the_token_of_an_earlier_epoch_is_refused(transport: Transport, backend: RawBackend) -> None:
    old: list[bytes] = []
    backend.corrupt = lambda message: old.append(bytes(message)) or message  # type: ignore[func-returns-value]
    get_status(transport)
    transport.frontend.new_epoch()
    token = struct.unpack_from("<H", old[0], 4)[0]
    backend.corrupt = patched(4, struct.pack("<H", (token & 0xFF00) | (token + 1) & 0xFF))
    with pytest.raises(ChannelError) as error:
        get_status(transport)
    assert error.value.name == "bad_token"


def test_a_backend_that_dies_while_it_owes_an_answer_is_noticed(transport: Transport, backend: RawBackend) -> None:
    def die(message: bytearray) -> None:
        backend.die()

    backend.corrupt = die
    transport.timeout = LATE
    with pytest.raises(PeerDead):
        get_status(transport)
    with pytest.raises(PeerDead):
        get_status(transport)


def test_an_event_storm_on_cfg_neither_ends_a_wait_early_nor_prolongs_it(
    transport: Transport, backend: RawBackend
) -> None:
    backend.held = True

    def storm() -> None:
        for _ in range(100):
            backend.notify()

    backend.idle = storm  # type: ignore[method-assign]
    transport.timeout = 0.3
    start = time.monotonic()
    with pytest.raises(ChannelTimeout):
        get_status(transport)
    assert 0.2 < time.monotonic() - start < LATE / 2


def test_random_answers_end_in_a_named_error_or_pass_as_data(domain: Domain, backend: RawBackend) -> None:
    dice = random.Random(30)

    def lie(message: bytearray) -> bytes | bytearray:
        match dice.randrange(3):
            case 0:
                return dice.randbytes(dice.randrange(277))
            case 1:
                message[dice.randrange(len(message))] ^= 1 << dice.randrange(8)
                return message
            case _:
                return message + dice.randbytes(dice.randrange(8))

    outcomes = set()
    transport = Transport(domain, 0, timeout=1.0)
    for _ in range(80):
        if transport.lost() or transport.frontend.broken:
            backend.corrupt = lambda message: message
            transport.connect(5.0)
            backend.corrupt = lie
        try:
            get_status(transport)
            outcomes.add("data")
        except ChannelError as error:
            outcomes.add(error.name)
        except BadAnswer:
            outcomes.add("payload")
    transport.close()
    assert outcomes > {"data", "bad_type", "bad_token", "bad_size"}


def test_random_bytes_all_over_the_page_end_in_a_named_error(domain: Domain, backend: RawBackend) -> None:
    dice = random.Random(31)

    def scribble(message: bytearray) -> None:
        backend.page[:512] = dice.randbytes(512)
        backend.notify()

    transport = Transport(domain, 0, timeout=0.05)
    for _ in range(30):
        backend.corrupt = lambda message: message
        transport.connect(5.0)
        backend.corrupt = scribble
        with pytest.raises(ChannelError):
            get_status(transport)
    transport.close()


# ---- connecting ----


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


# ---- probe ----

LIES_IN_PROBE = {
    "info short": (messages.GET_DEVICE_INFO, b"\0" * 23),
    "info long": (messages.GET_DEVICE_INFO, b"\0" * 25),
    "info of another type": (messages.GET_DEVICE_INFO, struct.pack("<5I2H", 63, 0, 64, 0, 1, 0, 0)),
    "info with odd feature bits": (messages.GET_DEVICE_INFO, struct.pack("<5I2H", 4, 0, 33, 0, 1, 0, 0)),
    "info without features": (messages.GET_DEVICE_INFO, struct.pack("<5I2H", 4, 0, 0, 0, 1, 0, 0)),
    "features empty": (messages.GET_DEVICE_FEATURES, b""),
    "features of other blocks": (messages.GET_DEVICE_FEATURES, struct.pack("<4I", 1, 2, 0, 1)),
    "fewer features": (messages.GET_DEVICE_FEATURES, struct.pack("<3I", 0, 1, 0)),
    "features without VERSION_1": (messages.GET_DEVICE_FEATURES, struct.pack("<4I", 0, 2, 0, 0)),
    "features taken with words": (messages.SET_DRIVER_FEATURES, b"\0" * 4),
    "status empty": (messages.GET_DEVICE_STATUS, b""),
    "FEATURES_OK does not stick": (messages.GET_DEVICE_STATUS, struct.pack("<I", PROBED & ~FEATURES_OK)),
    "DRIVER_OK does not stick": (messages.GET_DEVICE_STATUS, struct.pack("<I", 11)),
    "reset does not reset": (messages.SET_DEVICE_STATUS, struct.pack("<I", 1)),
    "set status empty": (messages.SET_DEVICE_STATUS, b""),
    "no such queue": (messages.GET_VQUEUE, struct.pack("<4I3Q", 0, 0, 0, 0, 0, 0, 0)),
    "another queue": (messages.GET_VQUEUE, struct.pack("<4I3Q", 1, 8, 0, 0, 0, 0, 0)),
    "queue not taken": (messages.GET_VQUEUE, struct.pack("<4I3Q", 0, 8, 0, 0, 0, 0, 0)),
    "queue short": (messages.GET_VQUEUE, b"\0" * 39),
    "set queue with words": (messages.SET_VQUEUE, b"\0"),
}


@pytest.mark.parametrize("lie", LIES_IN_PROBE)
def test_a_lie_during_probe_ends_the_probe_and_leaves_the_device(domain: Domain, backend: RawBackend, lie: str) -> None:
    msg_id, payload = LIES_IN_PROBE[lie]
    backend.device.lies[msg_id] = payload
    with pytest.raises((BadAnswer, InitialisationFailed)):
        RngDevice(domain, 0, timeout=5.0)
    assert backend.frontend_state() is State.CLOSED
    if messages.SET_DRIVER_FEATURES in backend.device.message_ids:
        assert backend.device.statuses[-1] & FAILED


def test_sizes_near_the_end_of_32_bits_cost_nothing(domain: Domain, backend: RawBackend) -> None:
    top = 0xFFFFFFFF
    backend.device.lies[messages.GET_DEVICE_INFO] = struct.pack("<5I2H", 4, top, top - 31, top, top, 0xFFFF, 0xFFFF)
    backend.device.lies[messages.GET_DEVICE_FEATURES] = lambda payload: payload + bytes(4) + b"\xff" * 252
    queue = backend.device.honest

    def largest(payload: bytes) -> bytes:
        answer = bytearray(queue(messages.GET_VQUEUE, payload))
        answer[4:8] = b"\xff" * 4
        return bytes(answer)

    backend.device.lies[messages.GET_VQUEUE] = largest
    with RngDevice(domain, 0, queue_size=16) as device:
        assert device.queues[0].ring.size == 16
        assert device.offered.bit_length() == 2048


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 1000, 32768, 65535])
def test_a_queue_of_any_maximum_gets_a_power_of_two(domain: Domain, directory: Path, size: int) -> None:
    with RawBackend(directory, ScriptedDevice(queue_sizes=(size,))) as raw:
        raw.attach()
        with RngDevice(domain, 0, queue_size=128) as device:
            assert device.queues[0].ring.size == 1 << (min(size, 128).bit_length() - 1)


# ---- config space ----


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0" * 11,
        struct.pack("<3I", 0, 0, 4),
        struct.pack("<3I", 0, 0, 0xFFFFFFFF) + b"\0" * 4,
        struct.pack("<3I", 0, 1, 4) + b"\0" * 4,
        struct.pack("<3I", 0, 0, 3) + b"\0" * 3,
        struct.pack("<3I", 0, 0, 4) + b"\0" * 5,
    ],
)
def test_config_data_of_another_range_or_size_is_refused(domain: Domain, backend: RawBackend, payload: bytes) -> None:
    with RngDevice(domain, 0) as device:
        backend.device.lies[messages.GET_CONFIG] = backend.device.lies[messages.SET_CONFIG] = payload
        with pytest.raises(BadAnswer):
            device.config_read(0, 4)
        with pytest.raises(BadAnswer):
            device.config_write(0, bytes(4))


def test_a_generation_that_never_settles_ends_at_the_deadline(domain: Domain, directory: Path) -> None:
    with RawBackend(directory, ScriptedDevice(config=bytes(600))) as raw:
        raw.attach()
        with RngDevice(domain, 0, timeout=3.0) as device:
            device.timeout = 0.2

            def restless(payload: bytes) -> bytes:
                raw.device.generation += 1
                return raw.device.honest(messages.GET_CONFIG, payload)

            assert len(device.config_read(0, 600)) == 600
            raw.device.lies[messages.GET_CONFIG] = restless
            with pytest.raises(BadAnswer, match="generation"):
                device.config_read(0, 600)


def test_a_refused_config_access_is_an_error(domain: Domain, backend: RawBackend) -> None:
    with RngDevice(domain, 0) as device:
        with pytest.raises(ConfigRefused):
            device.config_read(0, 65)
        with pytest.raises(ConfigRefused):
            device.config_read(0xFFFFFFFF, 1)


# ---- reset ----


def test_a_device_that_always_needs_a_reset_is_given_up(domain: Domain, directory: Path) -> None:
    class Sick(RawBackend):
        def idle(self) -> None:
            if self.device.status & 4:
                self.set_status(NEEDS_RESET)

    with Sick(directory, ScriptedDevice()) as raw:
        raw.attach()
        device = RngDevice(domain, 0, timeout=5.0)
        with pytest.raises(NeedsReset):
            device.read(16)
        assert raw.device.statuses.count(0) <= 8
        device.close()


def test_a_backend_that_dies_in_every_probe_is_given_up(domain: Domain, directory: Path) -> None:
    class Mortal(RawBackend):
        mortal = False

        def idle(self) -> None:
            if self.mortal and messages.SET_DRIVER_FEATURES in self.device.message_ids:
                self.device.seen.clear()
                self.die()

    with Mortal(directory, ScriptedDevice()) as raw:
        raw.attach()
        device = RngDevice(domain, 0, timeout=5.0)
        raw.mortal = True
        raw.die()
        with pytest.raises(PeerDead):
            device.recover()
        assert raw.connections <= 8
        device.close()


# ---- virtqueues ----


class Server(RawBackend):
    """Gives every chain that is offered on `queue` to `use`."""

    queue = 0

    def __init__(self, directory: Path, device: ScriptedDevice, use: Callable[[RawQueue, int], None]) -> None:
        super().__init__(directory, device)
        self._use = use
        self._queue: RawQueue | None = None

    def idle(self) -> None:
        if not self.device.status & 4:
            return
        if self._queue is None or self._queue.geometry != self.device.queues[self.queue]:
            self._queue = RawQueue(self, self.queue)
        for head in self._queue.available():
            self._use(self._queue, head)


def use_twice(queue: RawQueue, head: int) -> None:
    queue.put_used(head, 16)
    queue.put_used(head, 16)
    queue.publish()


USED_RING_LIES: dict[str, Callable[[RawQueue, int], None]] = {
    "id not in flight": lambda queue, head: queue.use((head + 1) % queue.size, 16),
    "id past the table": lambda queue, head: queue.use(queue.size, 16),
    "id of 32 bits": lambda queue, head: queue.use(head | 1 << 16, 16),
    "more written than writable": lambda queue, head: queue.use(head, 17),
    "4 GiB written": lambda queue, head: queue.use(head, 0xFFFFFFFF),
    "used.idx ahead of what was offered": lambda queue, head: queue.publish(queue.size + 1),
    "used.idx behind": lambda queue, head: queue.publish(0xFFFF),
    "the same id twice": use_twice,
}


@pytest.mark.parametrize("lie", USED_RING_LIES)
def test_a_lie_in_the_used_ring_is_an_error(domain: Domain, directory: Path, lie: str) -> None:
    with Server(directory, ScriptedDevice(), USED_RING_LIES[lie]) as raw:
        raw.attach()
        device = RngDevice(domain, 0, timeout=5.0)
        with pytest.raises(ChannelError):
            device.read(16)
        device.close()


def test_a_device_that_lied_serves_again_after_a_reset(domain: Domain, directory: Path) -> None:
    lies = [USED_RING_LIES["id past the table"]]

    def use(queue: RawQueue, head: int) -> None:
        if lies:
            lies.pop()(queue, head)
            return
        (address, size, _) = queue.chain(head)[0]
        queue.payload(address, size)[:] = b"r" * size
        queue.use(head, size)

    with Server(directory, ScriptedDevice(), use) as raw:
        raw.attach()
        with RngDevice(domain, 0, timeout=5.0) as device:
            with pytest.raises(ChannelError):
                device.read(16)
            device.recover()
            assert device.read(16) == b"r" * 16


def test_a_request_the_device_keeps_times_out_and_is_not_repeated(domain: Domain, directory: Path) -> None:
    offered: list[int] = []

    with Server(directory, ScriptedDevice(), lambda queue, head: offered.append(head)) as raw:
        raw.attach()
        with RngDevice(domain, 0, timeout=5.0) as device:
            device.timeout = 0.3
            free = device.transport.arena.free_bytes if device.transport.arena else 0
            with pytest.raises(RequestTimeout):
                device.read(16)
            assert device.transport.arena is not None
            assert device.transport.arena.free_bytes < free  # the device may still write there
            device.timeout = 5.0
            device.recover()
            assert len(device.queues[0]) == 0
            assert device.transport.arena.free_bytes == free
    assert len(offered) == 1


def test_a_random_source_that_gives_nothing_ends_at_the_deadline(domain: Domain, directory: Path) -> None:
    with Server(directory, ScriptedDevice(), lambda queue, head: queue.use(head, 0)) as raw:
        raw.attach()
        with RngDevice(domain, 0, timeout=5.0) as device:
            device.timeout = 0.3
            with pytest.raises(RequestTimeout):
                device.read(16)


# ---- block ----


def blk_device(**limits: int) -> ScriptedDevice:
    config = bytearray(60)
    config[:8] = struct.pack("<Q", 64)
    return ScriptedDevice(2, features=1 << FLUSH, config=bytes(config))


def answering(status: int, short: int = 0) -> Callable[[RawQueue, int], None]:
    def use(queue: RawQueue, head: int) -> None:
        pieces = queue.chain(head)
        address, size, _ = pieces[-1]
        queue.payload(address, size)[0] = status
        writable = sum(size for _, size, write in pieces if write)
        queue.use(head, writable - short)

    return use


@pytest.mark.parametrize(
    ("status", "short", "expected"),
    [
        (1, 0, RequestFailed),
        (2, 0, Unsupported),
        (3, 0, BadAnswer),
        (0xFF, 0, BadAnswer),
        (0, 1, BadAnswer),
        (0, 513, BadAnswer),
    ],
)
def test_a_block_request_that_did_not_do_its_work_is_never_taken_for_success(
    domain: Domain, directory: Path, status: int, short: int, expected: type[DriverError]
) -> None:
    with Server(directory, blk_device(), answering(status, short)) as raw:
        raw.attach()
        with BlockDevice(domain, 0, timeout=5.0) as device:
            with pytest.raises(expected):
                device.read(0, 1)
            assert len(device.queues[0]) == 0
            assert device.transport.arena is not None
            assert device.transport.arena.free_bytes == device.transport.arena.pages * 4096


def test_a_capacity_of_64_bits_is_only_a_number(domain: Domain, directory: Path) -> None:
    device_model = blk_device()
    device_model.config[:8] = b"\xff" * 8
    with Server(directory, device_model, answering(1)) as raw:
        raw.attach()
        with BlockDevice(domain, 0, timeout=5.0) as device:
            assert device.capacity == 0xFFFFFFFFFFFFFFFF
            with pytest.raises(RequestFailed):
                device.read(device.capacity - 1, 1)
            assert device.submit(Operation.IN, 0, size=512) is not None


def test_limits_that_no_sector_fits_into_are_refused(domain: Domain, directory: Path) -> None:
    config = bytearray(60)
    config[8:16] = struct.pack("<II", 1, 4)
    with RawBackend(directory, ScriptedDevice(2, features=0b110, config=bytes(config))) as raw:
        raw.attach()
        with pytest.raises(InitialisationFailed, match="size_max"):
            BlockDevice(domain, 0, timeout=5.0)


# ---- net ----


def receiving(buffers: int, written: int) -> Callable[[RawQueue, int], None]:
    """Uses the first receive buffer, with this header and length."""

    def use(queue: RawQueue, head: int) -> None:
        if queue.used_idx == 0:
            address, size, _ = queue.chain(head)[0]
            queue.payload(address, size)[:12] = struct.pack("<BBHHHHH", 0, 0, 0, 0, 0, 0, buffers)
            queue.use(head, written)

    return use


@pytest.mark.parametrize("buffers", [0, 9, 65535])
def test_a_received_frame_of_impossibly_many_buffers_is_an_error(domain: Domain, directory: Path, buffers: int) -> None:
    model = ScriptedDevice(1, features=1 << MRG_RXBUF, config=bytes(24), queue_sizes=(8, 8))
    with Server(directory, model, receiving(buffers, 100)) as raw:
        raw.attach()
        with NetDevice(domain, 0, timeout=5.0) as device, pytest.raises(BadAnswer):
            device.receive(5.0)


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("written", [0, 11])
def test_a_received_buffer_too_short_for_its_header_is_dropped(
    domain: Domain, directory: Path, merge: bool, written: int
) -> None:
    model = ScriptedDevice(1, features=merge << MRG_RXBUF, config=bytes(24), queue_sizes=(8, 8))
    with Server(directory, model, receiving(1, written)) as raw:
        raw.attach()
        with NetDevice(domain, 0, timeout=5.0) as device:
            assert device.receive(0.3) is None
            assert device.dropped == 1


def test_a_generic_driver_survives_a_device_of_an_unknown_kind(domain: Domain, directory: Path) -> None:
    with RawBackend(directory, ScriptedDevice(0xFFFFFFFF, queue_sizes=(4, 4))) as raw:
        raw.attach()
        with VirtioDevice(domain, 0, timeout=5.0) as device:
            assert [queue.ring.size for queue in device.queues] == [4, 4]
