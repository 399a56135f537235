"""`python -m guest`: the devices of a domain from the command line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

from cpp_ring import ChannelError, HostError, xen
from cpp_ring.store import StoreError
from guest import agent
from guest.arena import SECTOR
from guest.blk import BlockDevice
from guest.device import VirtioDevice
from guest.drivers import open_device
from guest.errors import DriverError, Unsupported
from guest.hypervisor import Domain, open_domain
from guest.net import NetDevice
from guest.rng import RngDevice
from guest.xenbus import list_devices

FAILED: Final = 1
"""Exit code: the device or its backend."""
USAGE: Final = 2
NO_HYPERVISOR: Final = 3
"""Exit code: the hypervisor or the store."""
INTERRUPTED: Final = 130

Driver = TypeVar("Driver", bound=VirtioDevice)
Command = Callable[[Domain, argparse.Namespace], None]
NAMES: Final = {1: "net", 2: "blk", 4: "rng"}


def list_command(domain: Domain, _: argparse.Namespace) -> None:
    with domain.open_store() as store:
        for entry in list_devices(store):
            device_id = "-" if entry.device_id is None else entry.device_id
            kind = NAMES.get(entry.device_id or 0, "-")
            state = entry.backend_state.name.lower() if entry.backend_state is not None else "-"
            print(f"{entry.number}\tdevice id {device_id}\t{kind}\tbackend {entry.backend_domid}\t{state}")


def probe_command(domain: Domain, arguments: argparse.Namespace) -> None:
    with open_device(domain, arguments.devid, timeout=arguments.timeout) as device:
        for key, value in agent.describe(device).items():
            match value:
                case dict():
                    for name, number in value.items():
                        print(f"{key}.{name}: {number}")
                case _:
                    print(f"{key}: {_readable(key, value)}")


def _readable(key: str, value: object) -> str:
    """An entry of `agent.describe` for people."""
    match key, value:
        case "vendor_id", int():
            return f"{value:#06x}"
        case "queues", list():
            return f"{len(value)}, of size {', '.join(map(str, value))}" if value else "0"
        case "speed", None:
            return "unknown"
        case "speed", (speed, duplex):
            return f"{speed} Mbit/s, {'full' if duplex else 'half'} duplex"
        case _, list() | tuple():
            return " ".join(map(str, value))
    return str(value)


def config_command(domain: Domain, arguments: argparse.Namespace) -> None:
    with open_device(domain, arguments.devid, timeout=arguments.timeout) as device:
        size = device.info.config_size - arguments.offset if arguments.size is None else arguments.size
        data = device.config_read(arguments.offset, max(0, size))
    for at in range(0, len(data), 16):
        print(f"{arguments.offset + at:04x}  {data[at : at + 16].hex(' ')}")


def blk_command(domain: Domain, arguments: argparse.Namespace) -> None:
    with open_device(domain, arguments.devid, timeout=arguments.timeout) as device:
        disk = _require(device, BlockDevice)
        match arguments.action:
            case "info":
                print(f"id: {disk.get_id()}\nsize: {disk.capacity * SECTOR}\nread only: {disk.read_only}")
                for name, value in disk.config.items():
                    print(f"{name}: {value}")
            case "read":
                count = disk.capacity - arguments.sector if arguments.count is None else arguments.count
                with _output(arguments.file) as out:
                    for piece in disk.stream(arguments.sector, max(0, count)):
                        out.write(piece)
            case "write":
                with _input(arguments.file) as source:
                    _write_all(disk, arguments.sector, source)
                disk.flush()
            case "flush":
                disk.flush()
            case "discard":
                disk.discard(arguments.sector, arguments.count or 0)


def rng_command(domain: Domain, arguments: argparse.Namespace) -> None:
    with open_device(domain, arguments.devid, timeout=arguments.timeout) as device:
        print(_require(device, RngDevice).read(arguments.count).hex())


def net_command(domain: Domain, arguments: argparse.Namespace) -> None:
    with open_device(domain, arguments.devid, timeout=arguments.timeout) as device:
        nic = _require(device, NetDevice)
        match arguments.action:
            case "send":
                nic.send(bytes.fromhex(arguments.frame))
                nic.flush()
            case "receive":
                frame = nic.receive(arguments.timeout)
                if frame is None:
                    raise DriverError(f"no frame came in {arguments.timeout:g} s")
                print(frame.hex())
            case "info":
                for key in ("mac", "mtu", "link", "announce", "speed", "pairs"):
                    print(f"{key}: {_readable(key, agent.describe(nic)[key])}")


def agent_command(domain: Domain, _: argparse.Namespace) -> None:
    agent.run(domain)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m guest", description="Drives the virtio devices of a domain.")
    default = os.environ.get("VIRTIO_DM_HYPERVISOR") or ("xen" if xen.store_path() else "local")
    help_text = "default: $VIRTIO_DM_HYPERVISOR, else xen inside of one, else local"
    top.add_argument("--hypervisor", default=default, metavar="xen|local[:NAME]", help=help_text)
    top.add_argument("--domid", type=int, help="the domain this process is to be; not on Xen, where it is known")
    top.add_argument("--timeout", type=float, default=30.0, metavar="S", help="seconds to wait; default: %(default)s")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Command, text: str, *, devid: bool = True) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        if devid:
            command.add_argument("devid", type=_natural, help="number of the device")
        return command

    add("list", list_command, "Lists the devices of the domain.", devid=False)
    add("probe", probe_command, "Initialises a device and shows what it is.")
    config = add("config", config_command, "Shows config space in hexadecimal.")
    config.add_argument("offset", type=_natural, nargs="?", default=0)
    config.add_argument("size", type=_natural, nargs="?")
    blk = add("blk", blk_command, "Reads and writes a block device, in sectors of 512 bytes.", devid=False)
    blk.add_argument("action", choices=["info", "read", "write", "flush", "discard"])
    blk.add_argument("devid", type=_natural, help="number of the device")
    blk.add_argument("sector", type=_natural, nargs="?", default=0)
    blk.add_argument("count", type=_natural, nargs="?", help="sectors; default for read: to the end")
    blk.add_argument("--file", type=Path, help="to read into or write from, instead of standard output and input")
    rng = add("rng", rng_command, "Prints random bytes in hexadecimal.")
    rng.add_argument("count", type=_natural)
    net = add("net", net_command, "Sends or receives one Ethernet frame, in hexadecimal.", devid=False)
    net.add_argument("action", choices=["info", "send", "receive"])
    net.add_argument("devid", type=_natural, help="number of the device")
    net.add_argument("frame", nargs="?", default="", help="to send")
    add("agent", agent_command, "Executes commands, one JSON object a line (see guest/agent.py).", devid=False)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        arguments.run(open_domain(arguments.hypervisor, arguments.domid), arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nobody reads: nothing to say at exit either
        return FAILED
    except (HostError, StoreError) as error:
        return _failed(NO_HYPERVISOR, error)
    except (DriverError, ChannelError, OSError) as error:
        return _failed(FAILED, error)
    except ValueError as error:
        return _failed(USAGE, error)
    return 0


def _failed(code: int, error: Exception) -> int:
    text = str(error.strerror) if isinstance(error, HostError) else str(error)
    print(f"guest: {text}", file=sys.stderr)
    return code


def _natural(text: str) -> int:
    number = int(text, 0)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return number


def _require(device: VirtioDevice, driver: type[Driver]) -> Driver:
    if not isinstance(device, driver):
        raise Unsupported(f"the device has device id {device.info.device_id}, not {driver.device_id}")
    return device


def _output(path: Path | None) -> BinaryIO:
    return path.open("wb") if path else os.fdopen(os.dup(1), "wb")


def _input(path: Path | None) -> BinaryIO:
    return path.open("rb") if path else os.fdopen(os.dup(0), "rb")


def _write_all(disk: BlockDevice, sector: int, source: BinaryIO) -> None:
    while data := source.read(1 << 20):
        disk.write(sector, data)
        sector += len(data) // SECTOR


if __name__ == "__main__":
    sys.exit(main())
