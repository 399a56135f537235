"""The base class: declarations, hooks, masks, feature checks, and how queues find their handlers."""

from collections.abc import Sequence

import pytest

from devices import (
    ConfigSpace,
    Device,
    FeatureTable,
    Hold,
    Queue,
    Request,
    Requires,
    array,
    le16,
    le32,
    on_read,
    on_write,
    u8,
)
from devices.features import mask
from devices.testing import MockDriver


class ThingConfig(ConfigSpace):
    plain = le32(0)
    count = le32(4)
    level = le16(8, writable=True)
    key = array(u8, 4, 10, writable=True)
    free = le16(14, writable=True)
    extra = le32(16, feature=2, writable=True)


class Thing(Device):
    """A device with everything a declaration can have."""

    name = "thing"
    device_id = 99
    config_space = ThingConfig
    config: ThingConfig
    queues = (
        Queue("eventq"),
        Queue("requestq1", handler="requestq"),
        Queue("requestq2", handler="requestq"),
        Queue("extraq", 16, feature=2),
    )
    features = mask(0, 1, 2, 70)
    feature_table = FeatureTable(
        {0: "THING_F_A", 1: "THING_F_B", 2: "THING_F_C", 70: "THING_F_FAR"},
        (Requires(1, (0, 2)), Requires(70, (1,))),
    )

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.written: list[tuple[str, int | bytes]] = []
        self.served: list[int] = []
        self.ready: list[int] = []

    @on_read("count")
    def count(self) -> int:
        self.reads += 1
        return self.reads

    @on_write("level")
    def set_level(self, value: int) -> None:
        if value > 100:
            raise ValueError("too loud")
        self.written.append(("level", value))

    @on_write("key")
    def set_key(self, value: bytes) -> None:
        self.written.append(("key", value))

    def requestq(self, request: Request) -> Hold | None:
        self.served.append(request.queue)
        return request.hold() if request.readable else None

    def extraq(self, request: Request) -> None:
        request.write(b"extra")

    def eventq_ready(self, index: int) -> None:
        self.ready.append(index)


def test_masks_have_a_byte_for_each_exposed_byte() -> None:
    device = Thing()
    assert device.writable_mask() == bytes(8) + b"\1" * 12
    assert device.hooked_reads() == bytes(4) + b"\1" * 4 + bytes(12)
    assert device.hooked_writes() == bytes(8) + b"\1" * 6 + bytes(6)


class Narrow(Thing):
    features = mask(0)


def test_masks_leave_out_fields_that_do_not_exist() -> None:
    device = Narrow()
    assert device.config.size == len(device.writable_mask()) == len(device.hooked_reads()) == 16


def test_a_read_hook_runs_only_for_its_field() -> None:
    device = Thing()
    device.config_refresh(0, 4)
    device.config_refresh(8, 8)
    assert device.reads == 0
    device.config_refresh(7, 1)
    assert device.reads == device.config.count == 1
    device.config_refresh(0, device.config.size)
    assert device.config.count == 2


def test_a_write_goes_through_its_hook_and_is_stored() -> None:
    device = Thing()
    assert device.config_write(8, b"\x05\x00" + b"KEY!" + b"\x09\x00")
    assert device.written == [("level", 5), ("key", b"KEY!")]
    assert (device.config.level, device.config.key, device.config.free) == (5, b"KEY!", 9)


def test_a_partial_write_is_merged_with_the_bytes_that_stay() -> None:
    device = Thing()
    device.config.level = 0x1105
    assert device.config_write(9, b"\x00")
    assert device.written == [("level", 5)]


def test_a_refused_write_changes_nothing() -> None:
    device = Thing()
    assert not device.config_write(8, b"\xff\x00" + b"KEY!")
    assert (device.config.level, device.config.key) == (0, bytes(4))


@pytest.mark.parametrize(
    ("offset", "data"), [(0, b"\1"), (7, b"\1\1"), (19, b"\1\1"), (20, b"\1"), (-1, b"\1"), (1 << 64, b"\1")]
)
def test_writes_outside_writable_fields_are_refused(offset: int, data: bytes) -> None:
    device = Thing()
    before = bytes(device.config.memory)
    assert not device.config_write(offset, data)
    assert bytes(device.config.memory) == before


def test_hooks_must_name_a_field_the_driver_can_touch() -> None:
    with pytest.raises(TypeError, match="hook on 'nothing'"):

        class NoField(Device):
            config_space = ThingConfig

            @on_read("nothing")
            def value(self) -> int:
                return 0

    with pytest.raises(TypeError, match="cannot write that field"):

        class ReadOnly(Device):
            config_space = ThingConfig

            @on_write("plain")
            def value(self, value: int) -> None: ...


def test_an_inherited_hook_can_be_overridden() -> None:
    class Quiet(Thing):
        def count(self) -> int:
            return 42

    device = Quiet()
    device.config_refresh(4, 4)
    assert device.config.count == 42


@pytest.mark.parametrize(
    ("features", "accepted"),
    [
        (0, True),
        (mask(0, 1), True),
        (mask(1, 2), True),
        (mask(1), False),
        (mask(0, 1, 70), True),
        (mask(0, 70), False),
        (mask(3), False),
        (mask(0, 200), False),
        (mask(0, 28, 29, 32, 33, 35, 40), True),
        (mask(50), False),
    ],
)
def test_drivers_features_must_be_offered_and_complete(features: int, accepted: bool) -> None:
    assert Thing().accepts(features) is accepted


def test_offering_an_incomplete_set_is_refused() -> None:
    with pytest.raises(ValueError, match="thing: THING_F_FAR requires THING_F_B"):
        Device.__init__(Thing(), features=mask(0, 70))


def test_offering_a_transport_bit_is_refused() -> None:
    with pytest.raises(ValueError, match="bits 24 to 49 are the transport's"):
        Device.__init__(Thing(), features=mask(32))


def test_a_model_is_held_to_what_its_class_lists() -> None:
    class Listed(Device):
        name = "listed"
        device_id = 1
        features = mask(1)
        offers = mask(1, 2)

    assert Listed(features=mask(1, 2)).features == mask(1, 2)
    with pytest.raises(ValueError, match="listed: offers features 0x8, which its class does not list"):
        Listed(features=mask(1, 3))


def test_queues_exist_by_their_feature_and_keep_their_index() -> None:
    device = Thing()
    assert [queue and queue.name for queue in device.queues_for(mask(2))] == [
        "eventq",
        "requestq1",
        "requestq2",
        "extraq",
    ]
    assert device.queues_for(mask(0))[3] is None


def test_numbered_queues_share_a_handler_that_sees_the_index() -> None:
    device = Thing()
    driver = MockDriver(device)
    driver.start()
    driver.send(1)
    driver.send(2)
    assert device.served == [1, 2]
    assert driver.send(3, b"", [9]) == b"extra"


def test_a_held_request_is_completed_later() -> None:
    device = Thing()
    driver = MockDriver(device)
    driver.start()
    buffers = driver.submit(1, b"wait", [4])
    assert not buffers.done
    buffers.request.write(b"done")
    device.backend.complete(buffers.request)
    assert buffers.done
    assert buffers.written == b"done"


def test_a_queue_without_handler_is_pulled_and_told_of_buffers() -> None:
    device = Thing()
    driver = MockDriver(device)
    driver.start()
    assert device.handler(device.queues[0]) is None
    buffers = driver.give(0, [3])
    assert device.ready == [0]
    request = device.backend.pop(0)
    assert request is buffers.request
    assert device.backend.pop(0) is None


def test_posted_work_runs_in_the_devices_thread() -> None:
    driver = MockDriver(Thing())
    ran: list[Sequence[int]] = []
    driver.post(lambda: ran.append([1]))
    assert ran == []
    driver.run()
    assert ran == [[1]]


@pytest.mark.parametrize("size", [0, 3, 65536, -2])
def test_queue_sizes_are_powers_of_two(size: int) -> None:
    with pytest.raises(ValueError, match=f"queue q: size {size} is not a power of two"):
        Queue("q", size)


def test_the_plain_life_cycle_needs_no_overrides() -> None:
    class Least(Device):
        name = "least"
        device_id = 1

    device = Least()
    device.check()
    device.open()
    device.features_ok(0)
    device.activate(0, [])
    device.reset()
    device.reset()
    device.close()
    assert device.config.size == 0
    assert device.queues_for(0) == ()
