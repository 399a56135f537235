"""The guest driver's own tests, on a real Xen: dom0 serves, a driver in the domU's user space probes and drives."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import inspect
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import payload_driver
from tests.xen.domu import Domu, GuestAgent
from tests.xen.serving import MIB, SECTOR, Emulator, command, until

RNG, BLK, READ_ONLY, NET, OTHER_DISK = range(5)
PAIRS = 2


class Served:
    """A domU with a device of each kind, all connected but OTHER_DISK."""

    def __init__(self, domu: Domu, directory: Path, ending: contextlib.ExitStack) -> None:
        self.image = directory / "disk.img"
        self.image.write_bytes(os.urandom(4 * MIB))
        self.read_only = directory / "read-only.img"
        self.read_only.write_bytes(os.urandom(MIB))
        self.other_image = directory / "other.img"
        self.other_image.write_bytes(os.urandom(MIB))
        self.card = directory / "card"
        self.frames = ending.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        self.frames.bind(str(directory / "peer"))
        self.frames.settimeout(30)
        self.emulator = ending.enter_context(
            Emulator(
                domu,
                "rng",
                f"blk,path={self.image},serial=xen-1",
                f"blk,path={self.read_only},readonly=on",
                f"net,socket={self.card},peer={directory / 'peer'},mac=02:00:00:00:00:01,queues={PAIRS}",
                f"blk,path={self.other_image}",
            )
        )
        self.guest: GuestAgent = ending.enter_context(domu.agent())
        self.found = [self.guest("connect", dev=dev) for dev in (RNG, BLK, READ_ONLY, NET)]


@pytest.fixture(scope="module")
def served(domu: Domu, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with contextlib.ExitStack() as ending:
        yield Served(domu, tmp_path_factory.mktemp("served"), ending)


def test_devices_are_found_and_initialised(served: Served) -> None:
    assert [found["device_id"] for found in served.found] == [4, 2, 2, 1]
    assert [entry["device_id"] for entry in served.guest("list")["devices"]] == [4, 2, 2, 1, 2]
    assert served.guest("status", dev=BLK)["status"] == 15


def test_configuration_is_what_the_model_says(served: Served) -> None:
    assert served.found[BLK]["config"]["capacity"] == 4 * MIB // SECTOR
    raw = bytes.fromhex(served.guest("config_read", dev=BLK, offset=0, size=60)["data"])
    assert int.from_bytes(raw[:8], "little") == 4 * MIB // SECTOR
    assert served.found[NET]["mac"] == "02:00:00:00:00:01"
    for on in (False, True):
        served.guest("blk_writeback", dev=BLK, on=on)
        assert served.guest("config_read", dev=BLK, offset=32, size=1)["data"] == f"{on:02x}"


def test_configuration_that_is_written_is_never_read_stale(served: Served) -> None:
    # Without Xen there are ten times as many (tests/guest/test_agent.py).
    answer = served.guest("config_race", dev=BLK, offset=32, values=["00", "01"], count=200)
    assert answer == {"ok": True, "count": 200, "stale": 0}


def test_a_device_is_initialised_again(served: Served) -> None:
    assert served.guest("probe", dev=RNG)["device_id"] == 4
    assert len(served.guest("rng", dev=RNG, size=16)["data"]) == 32


def test_a_disk_is_read_whole(served: Served) -> None:
    for dev, image in ((BLK, served.image), (READ_ONLY, served.read_only)):
        assert served.guest("blk_sha256", dev=dev)["sha256"] == hashlib.sha256(image.read_bytes()).hexdigest()


def test_what_is_written_is_in_the_file(served: Served) -> None:
    data = os.urandom(200 * SECTOR)
    served.guest("blk_write", dev=BLK, sector=100, data=base64.b64encode(data).decode())
    served.guest("blk_flush", dev=BLK)
    assert served.image.read_bytes()[100 * SECTOR : 300 * SECTOR] == data
    assert base64.b64decode(served.guest("blk_read", dev=BLK, sector=100, count=200)["data"]) == data


def test_discard_and_write_zeroes(served: Served) -> None:
    served.guest("blk_discard", dev=BLK, sector=1024, count=64)
    served.guest("blk_write_zeroes", dev=BLK, sector=2048, count=64)
    for sector in (1024, 2048):
        assert base64.b64decode(served.guest("blk_read", dev=BLK, sector=sector, count=64)["data"]) == bytes(
            64 * SECTOR
        )


def test_the_serial_number(served: Served) -> None:
    assert served.guest("blk_id", dev=BLK)["text"] == "xen-1"


def test_a_read_only_disk_is_not_written(served: Served) -> None:
    before = served.read_only.read_bytes()
    served.guest.send("blk_write", dev=READ_ONLY, sector=0, data=base64.b64encode(bytes(SECTOR)).decode())
    assert not served.guest.receive()["ok"]
    assert served.read_only.read_bytes() == before


def test_a_read_beyond_the_end_is_refused_and_the_disk_goes_on(served: Served) -> None:
    before = served.guest("status", dev=BLK)
    capacity = served.image.stat().st_size // SECTOR
    for sector, count in ((capacity, 1), (capacity - 1, 2), (1 << 60, 1)):
        served.guest.send("blk_read", dev=BLK, sector=sector, count=count)
        answer = served.guest.receive()
        assert (answer["ok"], answer["kind"]) == (False, "RequestFailed"), answer
    assert served.guest("status", dev=BLK) == before
    last = served.guest("blk_read", dev=BLK, sector=capacity - 1, count=1)["data"]
    assert base64.b64decode(last) == served.image.read_bytes()[-SECTOR:]


def test_a_disk_whose_file_grows_is_larger_for_the_guest(domu: Domu, served: Served) -> None:
    before = served.image.stat().st_size
    added = os.urandom(MIB)
    with served.image.open("ab") as file:
        file.write(added)
    command("update", str(domu.domid), str(BLK))
    seen = served.guest("wait_config_change", dev=BLK, timeout=30.0)
    assert (seen["changed"], seen["capacity"]) == (True, (before + MIB) // SECTOR)
    whole = served.guest("blk_sha256", dev=BLK, sector=before // SECTOR)
    assert whole == {"ok": True, "size": MIB, "sha256": hashlib.sha256(added).hexdigest()}


def test_the_guest_sees_the_cable_pulled_and_put_back(domu: Domu, served: Served) -> None:
    for link in (False, True):
        command("update", str(domu.domid), str(NET), f"link={'up' if link else 'down'}")
        seen = served.guest("wait_config_change", dev=NET, timeout=30.0)
        assert (seen["changed"], seen["link"]) == (True, link)
        # No frame passes while it is pulled, and the next one does.
        number = b"\x02" if link else b"\x01"
        frame = bytes.fromhex("ffffffffffff02000000000188b5") + number * 100
        served.guest("net_send", dev=NET, frame=frame.hex())
        served.guest("net_flush", dev=NET)
    assert served.frames.recv(2048) == frame


def test_frames_go_out_and_come_in(served: Served) -> None:
    for number in range(20):
        out = bytes.fromhex("ffffffffffff02000000000188b5") + bytes([number]) * 100
        served.guest("net_send", dev=NET, frame=out.hex())
        assert served.frames.recv(2048) == out
        back = bytes.fromhex("02000000000102000000000288b5") + bytes([number]) * (60 + 60 * number)
        served.frames.sendto(back, str(served.card))
        assert served.guest("net_receive", dev=NET, timeout=30.0)["frame"] == back.hex()


def test_the_control_queue(served: Served) -> None:
    served.guest("net_rx_mode", dev=NET, mode="promisc", on=True)
    served.guest("net_mac_table", dev=NET, unicast=["02:00:00:00:00:09"], multicast=[])
    served.guest("net_vlan", dev=NET, vlan=7, on=True)
    assert served.guest("net_pairs", dev=NET, pairs=PAIRS)["ok"]


def test_entropy(served: Served) -> None:
    one, other = (served.guest("rng", dev=RNG, size=4000)["data"] for _ in range(2))
    assert len(one) == 8000
    assert one != other


def test_requests_outside_the_arena_are_carried_by_grant_copy(domu: Domu, served: Served) -> None:
    size = 64 * 1024
    mapped = served.emulator.mappings()
    source = inspect.getsource(payload_driver)
    code, output = domu.run(["python3", "-c", source, str(OTHER_DISK), str(size)])
    assert code == 0, output
    content = served.other_image.read_bytes()
    assert output.strip() == hashlib.sha256(content[:size]).hexdigest()
    assert content[size : 2 * size] == content[:size]
    until(lambda: served.emulator.mappings() == mapped, "pages are still mapped")
