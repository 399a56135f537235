"""A guest that is told what to do: one JSON object a line in, one a line out. Drives demo, tests and bench, over a
pipe or over a domU's console.

    {"op": "connect", "dev": 0}                   {"ok": true, "device_id": 2, "config_size": 96, ...}
    {"op": "config_read", "dev": 0, "offset": 0, "size": 8}      {"ok": true, "data": "0000010000000000"}
    {"op": "config_read", "dev": 7}               {"ok": false, "kind": "TypeError", "error": "..."}

Every method `op_*` of `Agent` is an operation, its parameters the keys. Bytes are hexadecimal, but for block data,
which is base64. An "id" in a command comes back in its answer. The agent ends at the end of its input.
"""

from __future__ import annotations

import base64
import hashlib
import inspect
import json
import os
import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

from guest import messages
from guest.arena import SECTOR
from guest.blk import BlockDevice
from guest.device import VirtioDevice
from guest.drivers import open_device
from guest.errors import DeviceGone, DriverError, NoSuchDevice, Unsupported
from guest.hypervisor import Domain
from guest.kernel import Kernel
from guest.measuring import Measuring
from guest.net import NetDevice, RxMode
from guest.peers import Peers
from guest.rng import RngDevice
from guest.xenbus import list_devices

Answer = dict[str, Any]
Driver = TypeVar("Driver", bound=VirtioDevice)

MAX_LINE: Final = 64 * 1024 * 1024
READ_SIZE: Final = 1 << 20
IDLE: Final = 0.5
"""Seconds between two looks at the life of idle devices, besides those that the store causes."""


class Agent(Measuring, Peers, Kernel):
    """The devices of one domain under command."""

    def __init__(self, domain: Domain) -> None:
        Peers.__init__(self, domain)
        self._devices: dict[int, VirtioDevice] = {}
        self._gone: dict[int, str] = {}

    def execute(self, line: bytes) -> Answer:
        """One command, one answer. Never raises but for KeyboardInterrupt and SystemExit."""
        echo: Answer = {}
        try:
            command = json.loads(line)
            if not isinstance(command, dict):
                raise ValueError("a command is a JSON object")
            if "id" in command:
                echo["id"] = command.pop("id")
            handler = self._handler(command.pop("op", None))
            inspect.signature(handler).bind(**command)
            return {"ok": True, **handler(**command), **echo}
        except Exception as error:
            return {"ok": False, "kind": type(error).__name__, "error": str(error), **echo}

    def service(self) -> None:
        """Looks after devices that nobody talks to: follows unplugs, recovers from restarts."""
        for number, device in list(self._devices.items()):
            try:
                device.service()
            except DeviceGone as error:
                self._gone[number] = str(error)
                del self._devices[number]
            except Exception:
                continue  # whoever uses the device next gets to know

    def descriptors(self) -> list[int]:
        """Readable when `service` should be called."""
        stores = [device.transport.store for device in self._devices.values()]
        return [store.fileno() for store in stores if not store.closed]

    def close(self) -> None:
        for device in self._devices.values():
            device.close()
        self._devices.clear()
        self.op_peer_close()

    def _handler(self, name: object) -> Callable[..., Answer]:
        handler = getattr(self, f"op_{name}", None)
        if not isinstance(name, str) or handler is None:
            known = ", ".join(sorted(entry[3:] for entry in dir(self) if entry.startswith("op_")))
            raise ValueError(f"no operation {name!r}; there are: {known}")
        return handler  # type: ignore[no-any-return]

    def device(self, number: int) -> VirtioDevice:
        if number in self._gone:
            raise DeviceGone(self._gone[number])
        if number not in self._devices:
            raise NoSuchDevice(f"device {number} is not connected: connect it first")
        return self._devices[number]

    def device_as(self, driver: type[Driver], number: int) -> Driver:
        device = self.device(number)
        if not isinstance(device, driver):
            raise Unsupported(f"device {number} is no {driver.__name__}")
        return device

    # ---- the process ----

    def op_held(self) -> Answer:
        """What the kernel keeps for us: open descriptors, and pieces of shared memory, which granted pages are."""
        descriptors = len([*Path("/proc/self/fd").iterdir()]) - 1  # that of the look itself
        maps = Path("/proc/self/maps").read_text().splitlines()
        return {"descriptors": descriptors, "shared": sum(line.split()[1].endswith("s") for line in maps)}

    # ---- any device ----

    def op_list(self) -> Answer:
        with self.domain.open_store() as store:
            entries = list_devices(store)
        return {
            "devices": [
                {
                    "dev": entry.number,
                    "backend": entry.backend_domid,
                    "device_id": entry.device_id,
                    "state": None if entry.backend_state is None else int(entry.backend_state),
                }
                for entry in entries
            ]
        }

    def op_connect(self, dev: int, **options: Any) -> Answer:
        """`options` are those of VirtioDevice: timeout, exchange_timeout, refuse, queue_size."""
        if dev in self._devices:
            raise ValueError(f"device {dev} is connected already")
        device = self._devices[dev] = open_device(self.domain, dev, **options)
        self._gone.pop(dev, None)
        return describe(device)

    def op_probe(self, dev: int) -> Answer:
        """Resets and initialises the device again."""
        device = self.device(dev)
        device.recover()
        return describe(device)

    def op_status(self, dev: int) -> Answer:
        device = self.device(dev)
        return {
            "status": device.status,
            "needs_reset": device.needs_reset,
            "error": device.transport.frontend.error_code,
            "detail": device.transport.frontend.error_detail,
        }

    def op_close(self, dev: int) -> Answer:
        self.device(dev).close()
        del self._devices[dev]
        return {}

    def op_config_read(self, dev: int, offset: int, size: int) -> Answer:
        return {"data": self.device(dev).config_read(offset, size).hex()}

    def op_config_write(self, dev: int, offset: int, data: str) -> Answer:
        return {"data": self.device(dev).config_write(offset, bytes.fromhex(data)).hex()}

    def op_config_race(self, dev: int, offset: int, values: list[str], count: int) -> Answer:
        """Writes `values` in turn, each read back at once, `count` times. `stale`: reads that gave something else."""
        transport = self.device(dev).transport
        rounds = []
        for text in values:
            value = bytes.fromhex(text)
            write = messages.set_config(transport.frontend.config_generation, offset, value)
            rounds.append((value, write, messages.get_config(offset, len(value))))
        stale = 0
        for i in range(count):
            value, write, read = rounds[i % len(rounds)]
            transport.exchange(messages.SET_CONFIG, write)
            if not transport.exchange(messages.GET_CONFIG, read).endswith(value):
                stale += 1
        return {"count": count, "stale": stale}

    def op_wait_config_change(self, dev: int, timeout: float) -> Answer:
        device = self.device(dev)
        changed = device.wait_config_change(timeout)
        return {"changed": changed, **(describe(device) if changed else {})}

    def op_wait_gone(self, dev: int, timeout: float) -> Answer:
        """Waits until the device is unplugged."""
        deadline = time.monotonic() + timeout
        while dev in self._devices and (left := deadline - time.monotonic()) > 0:
            wait_readable(self.descriptors(), min(left, IDLE))
            self.service()
        return {"gone": dev in self._gone}

    # ---- block ----

    def op_blk_read(self, dev: int, sector: int, count: int) -> Answer:
        return {"data": base64.b64encode(self.device_as(BlockDevice, dev).read(sector, count)).decode()}

    def op_blk_sha256(self, dev: int, sector: int = 0, count: int | None = None) -> Answer:
        """Of a range; by default of the whole device."""
        device = self.device_as(BlockDevice, dev)
        sectors = device.capacity - sector if count is None else count
        digest = hashlib.sha256()
        for piece in device.stream(sector, sectors):
            digest.update(piece)
        return {"sha256": digest.hexdigest(), "size": sectors * SECTOR}

    def op_blk_write(self, dev: int, sector: int, data: str | None = None, file: str | None = None) -> Answer:
        """`data`, or what is in `file`."""
        if (data is None) == (file is None):
            raise ValueError("blk_write takes either data or file")
        content = base64.b64decode(data, validate=True) if data is not None else Path(str(file)).read_bytes()
        self.device_as(BlockDevice, dev).write(sector, content)
        return {"size": len(content)}

    def op_blk_flush(self, dev: int) -> Answer:
        self.device_as(BlockDevice, dev).flush()
        return {}

    def op_blk_discard(self, dev: int, sector: int, count: int) -> Answer:
        self.device_as(BlockDevice, dev).discard(sector, count)
        return {}

    def op_blk_write_zeroes(self, dev: int, sector: int, count: int, unmap: bool = False) -> Answer:
        self.device_as(BlockDevice, dev).write_zeroes(sector, count, unmap)
        return {}

    def op_blk_id(self, dev: int) -> Answer:
        return {"text": self.device_as(BlockDevice, dev).get_id()}

    def op_blk_writeback(self, dev: int, on: bool) -> Answer:
        self.device_as(BlockDevice, dev).set_writeback(on)
        return {}

    # ---- net ----

    def op_net_send(self, dev: int, frame: str, pair: int = 0) -> Answer:
        self.device_as(NetDevice, dev).send(bytes.fromhex(frame), pair)
        return {}

    def op_net_flush(self, dev: int, pair: int = 0) -> Answer:
        self.device_as(NetDevice, dev).flush(pair)
        return {}

    def op_net_receive(self, dev: int, timeout: float, pair: int = 0) -> Answer:
        """`frame` is null when none came in time."""
        frame = self.device_as(NetDevice, dev).receive(timeout, pair)
        return {"frame": None if frame is None else frame.hex()}

    def op_net_rx_mode(self, dev: int, mode: str, on: bool) -> Answer:
        self.device_as(NetDevice, dev).set_rx_mode(RxMode[mode.upper()], on)
        return {}

    def op_net_mac(self, dev: int, mac: str) -> Answer:
        self.device_as(NetDevice, dev).set_mac(bytes.fromhex(mac.replace(":", "")))
        return {}

    def op_net_mac_table(self, dev: int, unicast: list[str], multicast: list[str]) -> Answer:
        tables = [[bytes.fromhex(mac.replace(":", "")) for mac in table] for table in (unicast, multicast)]
        self.device_as(NetDevice, dev).set_mac_table(*tables)
        return {}

    def op_net_vlan(self, dev: int, vlan: int, on: bool) -> Answer:
        device = self.device_as(NetDevice, dev)
        (device.add_vlan if on else device.remove_vlan)(vlan)
        return {}

    def op_net_announced(self, dev: int) -> Answer:
        self.device_as(NetDevice, dev).announced()
        return {}

    def op_net_pairs(self, dev: int, pairs: int) -> Answer:
        self.device_as(NetDevice, dev).set_pairs(pairs)
        return {}

    # ---- rng ----

    def op_rng(self, dev: int, size: int) -> Answer:
        return {"data": self.device_as(RngDevice, dev).read(size).hex()}


def describe(device: VirtioDevice) -> Answer:
    """What probe found, for people and for programs."""
    answer: Answer = {
        "device_id": device.info.device_id,
        "vendor_id": device.info.vendor_id,
        "config_size": device.info.config_size,
        "offered": feature_numbers(device.offered),
        "features": feature_numbers(device.features),
        "queues": [queue.ring.size for queue in device.queues],
    }
    match device:
        case BlockDevice():
            answer |= {"capacity": device.capacity, "read_only": device.read_only, "config": device.config}
        case NetDevice():
            answer |= {
                "mac": device.mac.hex(":"),
                "mtu": device.mtu,
                "link": device.link_up,
                "announce": device.announce_wanted,
                "speed": device.speed,
                "pairs": device.max_pairs,
            }
    return answer


def feature_numbers(features: int) -> list[int]:
    return [bit for bit in range(features.bit_length()) if features >> bit & 1]


def wait_readable(descriptors: list[int], timeout: float) -> list[int]:
    """Those that are readable, or at their end, within `timeout` seconds."""
    poller = select.poll()
    for descriptor in descriptors:
        poller.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in poller.poll(timeout * 1000)]


def run(domain: Domain, stdin: int = 0, stdout: int = 1) -> None:
    """Executes commands until the end of the input; then closes every device."""
    agent = Agent(domain)
    try:
        for line in _lines(stdin, agent):
            answer = json.dumps(agent.execute(line)) + "\n"
            _write(stdout, answer.encode())
    finally:
        agent.close()


def _lines(stdin: int, agent: Agent) -> Iterator[bytes]:
    buffer = bytearray()
    while True:
        if stdin not in wait_readable([stdin, *agent.descriptors()], IDLE):
            agent.service()
            continue
        data = os.read(stdin, READ_SIZE)
        if not data:
            return
        buffer += data
        if len(buffer) > MAX_LINE + READ_SIZE:
            raise DriverError(f"a command of more than {MAX_LINE} bytes")
        if b"\n" in data:
            *lines, rest = buffer.split(b"\n")
            buffer = rest
            yield from (bytes(line) for line in lines if line.strip())


def _write(stdout: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(stdout, view) :]
