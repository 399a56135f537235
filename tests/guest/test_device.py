"""The driver does what Linux does, in its order, and gets over a backend that restarts or asks for a reset."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from cpp_ring import TRANSPORT_FEATURES, PeerDead
from cpp_ring.store import Store
from guest import messages
from guest.blk import BlockDevice, Operation
from guest.device import ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, NEEDS_RESET, VERSION_1, VirtioDevice, bits
from guest.drivers import open_device
from guest.errors import DeviceGone, InitialisationFailed, NoSuchDevice, Unsupported
from guest.hypervisor import Domain
from guest.net import CTRL_RX, CTRL_VQ, MAC, NetDevice
from guest.queue import Chain
from guest.rng import RngDevice
from guest.xenbus import State, XenbusDevice, list_devices
from tests.raw_backend import RawBackend
from tests.raw_queue import RawQueue
from tests.scripted_device import ScriptedDevice


@pytest.fixture
def backend(directory: Path) -> Iterator[RawBackend]:
    with RawBackend(directory, ScriptedDevice(config=bytes(range(64)))) as raw:
        raw.attach()
        yield raw


# ---- probe ----


def test_probe_is_linuxs(domain: Domain, backend: RawBackend) -> None:
    with RngDevice(domain, 0):
        m = messages
        assert backend.device.message_ids == [
            m.GET_DEVICE_INFO,
            m.SET_DEVICE_STATUS,  # reset
            m.GET_DEVICE_STATUS,
            m.SET_DEVICE_STATUS,  # ACKNOWLEDGE
            m.GET_DEVICE_STATUS,
            m.SET_DEVICE_STATUS,  # DRIVER
            m.GET_DEVICE_FEATURES,
            m.SET_DRIVER_FEATURES,
            m.GET_DEVICE_STATUS,
            m.SET_DEVICE_STATUS,  # FEATURES_OK
            m.GET_DEVICE_STATUS,  # did it stick?
            m.GET_VQUEUE,
            m.SET_VQUEUE,
            m.GET_VQUEUE,
            m.GET_DEVICE_STATUS,
            m.SET_DEVICE_STATUS,  # DRIVER_OK
            m.GET_DEVICE_STATUS,
        ]
        assert backend.device.statuses == [
            0,
            ACKNOWLEDGE,
            ACKNOWLEDGE | DRIVER,
            ACKNOWLEDGE | DRIVER | FEATURES_OK,
            ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK,
        ]
        assert backend.frontend_state() is State.CONNECTED


def test_close_resets_the_device_and_ends_in_closed(domain: Domain, backend: RawBackend) -> None:
    device = RngDevice(domain, 0)
    device.close()
    device.close()
    assert backend.device.statuses[-1] == 0
    assert backend.frontend_state() is State.CLOSED


def test_only_what_is_offered_known_and_not_refused_is_negotiated(domain: Domain, directory: Path) -> None:
    offered = bits(1, 5, 9, 28, 35, 60) | TRANSPORT_FEATURES
    with RawBackend(directory, ScriptedDevice(features=offered)) as raw:
        raw.attach()
        with RngDevice(domain, 0, refuse=bits(35)) as device:
            assert device.offered == offered
            assert device.features == TRANSPORT_FEATURES & ~bits(35)
            assert raw.device.driver_features == device.features
            assert device.has(VERSION_1)
            with pytest.raises(Unsupported):
                device.require(5, "this")


def test_a_feature_without_what_it_needs_is_not_taken(domain: Domain, directory: Path) -> None:
    with RawBackend(
        directory, ScriptedDevice(1, features=bits(MAC, CTRL_RX), config=bytes(24), queue_sizes=(8, 8, 8))
    ) as raw:
        raw.attach()
        with NetDevice(domain, 0) as device:
            assert device.has(MAC)
            assert not device.has(CTRL_RX)
        raw.device.features |= bits(CTRL_VQ)
        with NetDevice(domain, 0) as device:
            assert device.has(CTRL_RX)


def test_a_driver_refuses_a_device_of_another_kind(domain: Domain, backend: RawBackend) -> None:
    with pytest.raises(InitialisationFailed, match="device id 4"):
        BlockDevice(domain, 0)


def test_a_device_that_lacks_a_queue_is_marked_failed(domain: Domain, directory: Path) -> None:
    with RawBackend(directory, ScriptedDevice(1, config=bytes(24), queue_sizes=(8,))) as raw:
        raw.attach()
        with pytest.raises(InitialisationFailed, match="virtqueues"):
            NetDevice(domain, 0)
        assert raw.device.statuses[-1] & FAILED


@pytest.mark.parametrize(
    ("device_id", "driver"), [(1, NetDevice), (2, BlockDevice), (4, RngDevice), (77, VirtioDevice)]
)
def test_a_device_gets_the_driver_for_its_kind(
    domain: Domain, directory: Path, device_id: int, driver: type[VirtioDevice]
) -> None:
    with RawBackend(directory, ScriptedDevice(device_id, config=bytes(64), queue_sizes=(8, 8))) as raw:
        raw.attach()
        with open_device(domain, 0) as device:
            assert type(device) is driver


# ---- store ----


def test_devices_are_listed_even_those_that_make_no_sense(domain: Domain, backend: RawBackend, dom0: Store) -> None:
    base = "/local/domain/1/device/virtio-msg"
    dom0.write(f"{base}/7/backend", "/local/domain/0/nowhere")
    dom0.write(f"{base}/7/backend-id", "0")
    dom0.write(f"{base}/8/backend-id", "zero")
    dom0.write(f"{base}/nine/backend", "x")
    for name in ("7", "8", "nine"):
        dom0.set_perms(f"{base}/{name}", ["n1", "r0"])
    with domain.open_store() as store:
        entries = list_devices(store)
        assert [(entry.number, entry.device_id, entry.backend_state) for entry in entries] == [
            (0, 4, State.INIT_WAIT),
            (7, None, None),
            (8, None, None),
        ]
        with pytest.raises(NoSuchDevice):
            XenbusDevice(store, 9)
    for name in ("7", "8", "nine"):
        dom0.rm(f"{base}/{name}")


def test_a_domain_without_devices_has_an_empty_list(domain: Domain, directory: Path) -> None:
    with domain.open_store() as store:
        assert list_devices(store) == []
    with pytest.raises(NoSuchDevice):
        RngDevice(domain, 0)


def test_nodes_of_an_earlier_driver_do_not_survive_the_next(domain: Domain, backend: RawBackend) -> None:
    backend.store.write(f"{backend.frontend_path}/queue-7/event-channel", "3")
    backend.store.set_perms(f"{backend.frontend_path}/queue-7", ["n1", "r0"])
    with RngDevice(domain, 0):
        assert backend.frontend_node("queue-7/event-channel") is None
        assert backend.frontend_node("arena-pages") == "4"
        assert backend.frontend_node("version") == "1"


# ---- config space ----


def test_config_space_is_read_and_written(domain: Domain, backend: RawBackend) -> None:
    with RngDevice(domain, 0) as device:
        assert device.config_read(0, 64) == bytes(range(64))
        assert device.config_number(2, 2) == 0x0302
        assert device.config_write(8, b"abcd") == b"abcd"
        assert device.config_read(7, 6) == b"\x07abcd\x0c"
        assert device.config_read(5, 0) == b""
        with pytest.raises(ValueError, match="256"):
            device.config_write(0, bytes(257))


def test_a_read_in_several_exchanges_is_of_one_generation(domain: Domain, directory: Path) -> None:
    with RawBackend(directory, ScriptedDevice(config=b"a" * 600)) as raw:
        raw.attach()
        with RngDevice(domain, 0) as device:
            changes = [3]

            def change_in_between(payload: bytes) -> bytes:
                answer = raw.device.honest(messages.GET_CONFIG, payload)
                if changes[0] > 0 and struct.unpack_from("<I", payload)[0] == 256:
                    changes[0] -= 1
                    raw.device.generation += 1
                    raw.device.config[:] = bytes([ord("b") + changes[0]]) * 600
                return answer

            raw.device.lies[messages.GET_CONFIG] = change_in_between
            assert device.config_read(0, 600) == b"b" * 600
            assert changes == [0]


def test_a_config_change_is_noticed_without_polling(domain: Domain, backend: RawBackend) -> None:
    with RngDevice(domain, 0) as device:
        assert not device.config_changed()
        assert not device.wait_config_change(0.0)
        backend.set_generation(5)
        assert device.wait_config_change(10.0)
        assert not device.config_changed()
        backend.set_generation(6)
        assert device.config_changed()


# ---- recovery ----


def test_a_config_read_survives_the_death_of_the_backend(domain: Domain, backend: RawBackend) -> None:
    with RngDevice(domain, 0) as device:
        backend.die()
        backend.set_state(State.INIT_WAIT)
        assert device.config_read(0, 4) == bytes(range(4))
        assert backend.connections == 2


def test_waiting_for_a_change_survives_the_death_of_the_backend(domain: Domain, backend: RawBackend) -> None:
    with RngDevice(domain, 0) as device:
        backend.die()
        backend.set_state(State.INIT_WAIT)
        assert device.wait_config_change(10.0)
        assert backend.connections == 2


def test_an_exchange_with_the_dead_is_an_error_at_the_lowest_level(domain: Domain, backend: RawBackend) -> None:
    with RngDevice(domain, 0) as device:
        backend.die()
        with pytest.raises(PeerDead):
            device.transport.exchange(messages.GET_DEVICE_STATUS)


def test_an_unplugged_device_is_left_and_gone(domain: Domain, backend: RawBackend) -> None:
    device = RngDevice(domain, 0)
    backend.store.write(f"{backend.path}/online", "0")
    backend.set_state(State.CLOSING)
    with pytest.raises(DeviceGone):
        device.read(16)
    assert backend.frontend_state() is State.CLOSED
    with pytest.raises(DeviceGone):
        device.service()
    device.close()


class Disk(RawBackend):
    """A block device that holds requests until it is told to complete one."""

    def __init__(self, directory: Path, *, size: int = 64) -> None:
        super().__init__(directory, ScriptedDevice(2, config=struct.pack("<Q", size) + bytes(56), queue_sizes=(64,)))
        self.order: list[list[int]] = []  # sectors as offered, for each life of the queue
        self.complete_after = 10**9  # requests in this life that are completed
        self.then_die = False
        self.then_need_reset = False
        self._complete_held = False
        self._queue: RawQueue | None = None

    def complete_held(self) -> None:
        """Completes the oldest request, from the next turn of the thread on."""
        self._complete_held = True

    def idle(self) -> None:
        if not self.device.status & DRIVER_OK:
            return
        if self._queue is not None and self._complete_held:
            self._complete_held = False
            self._queue.use(0, 1)
        if self._queue is None or self._queue.geometry != self.device.queues[0]:
            self._queue = RawQueue(self, 0)
            self.order.append([])
        for head in self._queue.available():
            pieces = self._queue.chain(head)
            _, _, sector = struct.unpack("<IIQ", self._queue.payload(*pieces[0][:2]))
            self.order[-1].append(sector)
            if len(self.order[-1]) <= self.complete_after:
                address, size, _ = pieces[-1]
                self._queue.payload(address, size)[0] = 0
                self._queue.use(head, 1)
        if len(self.order[-1]) >= 8 and (self.then_die or self.then_need_reset):
            self.complete_after = 10**9
            if self.then_die:
                self.then_die = False
                self.die()
                self.set_state(State.INIT_WAIT)
            else:
                self.then_need_reset = False
                self.set_status(NEEDS_RESET | self.device.status)


@pytest.mark.parametrize("death", ["then_die", "then_need_reset"])
def test_requests_without_completion_are_repeated_in_order_and_the_others_are_not(
    domain: Domain, directory: Path, death: str
) -> None:
    with Disk(directory) as disk:
        disk.complete_after = 3
        setattr(disk, death, True)
        disk.attach()
        with BlockDevice(domain, 0) as device:
            requests = [device.submit(Operation.OUT, sector, data=bytes(512)) for sector in range(8)]
            for request in requests:
                assert request is not None
                device.finish(request)
            assert disk.order == [list(range(8)), list(range(3, 8))]
            assert len(device.queues[0]) == 0


def test_an_abandoned_request_is_not_repeated(domain: Domain, directory: Path) -> None:
    with Disk(directory) as disk:
        disk.complete_after = 0
        disk.attach()
        with BlockDevice(domain, 0) as device:
            requests = [device.submit(Operation.OUT, sector, data=bytes(512)) for sector in range(4)]
            assert requests[1] is not None
            device.abandon(requests[1])
            disk.complete_after = 10**9
            device.recover()
            for request in (requests[0], requests[2], requests[3]):
                assert request is not None
                device.finish(request)
            assert disk.order[-1] == [0, 2, 3]
            assert device.transport.arena is not None
            assert device.transport.arena.free_bytes == device.transport.arena.pages * 4096


def test_an_abandoned_request_frees_its_buffers_when_it_comes_back(domain: Domain, directory: Path) -> None:
    with Disk(directory) as disk:
        disk.complete_after = 0
        disk.attach()
        with BlockDevice(domain, 0) as device:
            request = device.submit(Operation.OUT, 0, data=bytes(512))
            assert request is not None
            device.abandon(request)
            assert device.transport.arena is not None
            assert device.transport.arena.free_bytes < device.transport.arena.pages * 4096
            disk.complete_held()
            device.wait(device.queues[0], lambda: len(device.queues[0]) == 0)
            assert device.transport.arena.free_bytes == device.transport.arena.pages * 4096


def test_an_abandoned_request_that_never_reached_the_ring_is_dropped(domain: Domain, directory: Path) -> None:
    with Disk(directory) as disk:
        disk.complete_after = 0
        disk.attach()
        with BlockDevice(domain, 0, queue_size=8) as device:
            requests = [device.submit(Operation.OUT, sector, data=bytes(512)) for sector in range(8)]
            assert requests[-1] is not None
            assert len(device.queues[0]) == 8
            device.abandon(requests[-1])
            assert len(device.queues[0]) == 7


def test_more_requests_than_the_ring_has_room_for_wait_their_turn(domain: Domain, directory: Path) -> None:
    with Disk(directory) as disk:
        disk.attach()
        with BlockDevice(domain, 0, queue_size=8) as device:
            requests = [device.submit(Operation.OUT, sector, data=bytes(512)) for sector in range(32)]
            assert len(device.queues[0]) == 32
            for request in reversed(requests):
                assert request is not None
                device.finish(request)
            assert disk.order == [list(range(32))]


def test_a_chain_longer_than_the_queue_is_refused(domain: Domain, backend: RawBackend) -> None:
    with RngDevice(domain, 0) as device:
        with pytest.raises(ValueError, match="9 pieces in a queue of 8"):
            device.queues[0].submit(Chain([], [(1 << 63, 1)] * 9))
        assert len(device.queues[0]) == 0


@pytest.mark.parametrize(("size_max", "seg_max", "pieces"), [(4096, 4, 4), (512, 1, 1), (1024, 100, 62), (0, 0, 1)])
def test_requests_keep_the_devices_limits(
    domain: Domain, directory: Path, size_max: int, seg_max: int, pieces: int
) -> None:
    with Disk(directory) as disk:
        disk.device.features |= 0b110
        disk.device.config[8:16] = struct.pack("<II", size_max, seg_max)
        disk.attach()
        with BlockDevice(domain, 0) as device:
            assert device.transfer_sectors == (size_max * pieces // 512 if size_max else 256)
            request = device.submit(Operation.OUT, 0, data=bytes(device.transfer_sectors * 512))
            assert request is not None
            device.finish(request)
            assert len(request.chain.readable) == pieces + 1
            assert all(size <= (size_max or 1 << 20) for _, size in request.chain.readable[1:])
