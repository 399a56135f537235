"""A virtio-net driver for tests, and the other end of its cable: frames and commands written out from virtio 1.3."""

import socket
import struct
from collections.abc import Sequence
from pathlib import Path

from devices.features import has
from devices.net import Net
from devices.net_config import F_CTRL_RX
from devices.testing import Buffers, MockDriver

MAC = bytes.fromhex("525400123456")
OTHER = bytes.fromhex("525400abcdef")
GROUP = bytes.fromhex("01005e000001")
BROADCAST = b"\xff" * 6
CONTROL_OK, CONTROL_ERR = b"\0", b"\1"


def vlan_tag(vlan: int | None) -> bytes:
    return b"" if vlan is None else b"\x81\x00" + vlan.to_bytes(2, "big")


def frame(to: bytes = MAC, sender: bytes = OTHER, vlan: int | None = None, payload: bytes = b"payload") -> bytes:
    tag = vlan_tag(vlan)
    return to + sender + tag + b"\x88\xb5" + payload


def udp4(to: bytes, source: tuple[bytes, int], target: tuple[bytes, int], fragment: int = 0) -> bytes:
    addresses = source[0] + target[0]
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 28, 0, fragment, 64, 17, 0) + addresses
    return to + OTHER + b"\x08\x00" + ip + struct.pack("!HHHH", source[1], target[1], 8, 0)


def udp6(to: bytes, source: tuple[bytes, int], target: tuple[bytes, int]) -> bytes:
    ip = struct.pack("!IHBB", 6 << 28, 8, 17, 64) + source[0] + target[0]
    return to + OTHER + b"\x86\xdd" + ip + struct.pack("!HHHH", source[1], target[1], 8, 0)


def tcp4(to: bytes, payload: bytes, sender: bytes = OTHER, vlan: int | None = None, options: int = 0) -> bytes:
    """A frame whose TCP checksum is not complete: behind 34 bytes, a VLAN tag and IPv4 `options`, there is TCP."""
    tag = vlan_tag(vlan)
    size = 20 + options
    addresses = b"\x0a\x63\0\1\x0a\x63\0\2"
    ip = struct.pack("!BBHHHBBH", 0x40 | size // 4, 0, size + 20 + len(payload), 0, 0, 64, 6, 0)
    ip += addresses + b"\1" * options
    ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    return to + sender + tag + b"\x08\x00" + ip + _tcp(addresses, len(payload)) + payload


def tcp6(to: bytes, payload: bytes, sender: bytes = OTHER, extension: bytes = b"") -> bytes:
    """The same over IPv6; behind 54 bytes and `extension` there is TCP."""
    addresses = b"\xfe\x80" + bytes(13) + b"\1" + b"\xfe\x80" + bytes(13) + b"\2"
    ip = struct.pack("!IHBB", 6 << 28, len(extension) + 20 + len(payload), 60 if extension else 6, 64) + addresses
    return to + sender + b"\x86\xdd" + ip + extension + _tcp(addresses, len(payload)) + payload


def _tcp(addresses: bytes, payload: int) -> bytes:
    """Its checksum is that of the pseudo header."""
    begun = ~checksum(addresses + struct.pack("!HH", 6, 20 + payload)) & 0xFFFF
    return struct.pack("!HHIIBBHHH", 1000, 2000, 1, 1, 5 << 4, 0x10, 1000, begun, 0)


def checksum(data: bytes) -> int:
    """Of the Internet (RFC 1071); 0 over what contains a right one."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def header(
    flags: int = 0,
    gso_type: int = 0,
    hdr_len: int = 0,
    gso_size: int = 0,
    start: int = 0,
    offset: int = 0,
    buffers: int = 0,
) -> bytes:
    """struct virtio_net_hdr_v1."""
    return struct.pack("<BBHHHHH", flags, gso_type, hdr_len, gso_size, start, offset, buffers)


class Cable:
    """The peer of a device with a socket backend."""

    def __init__(self, directory: Path) -> None:
        self.device_path = directory / "device"
        self.path = directory / "peer"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(str(self.path))

    def send(self, data: bytes) -> None:
        self.socket.sendto(data, str(self.device_path))

    def receive(self) -> bytes | None:
        try:
            return self.socket.recv(1 << 17)
        except BlockingIOError:
            return None

    def close(self) -> None:
        self.socket.close()
        self.path.unlink(missing_ok=True)


class NetDriver(MockDriver):
    """Opens and starts the device."""

    def __init__(self, device: Net, features: int | None = None) -> None:
        super().__init__(device)
        self.net = device
        device.open()
        self.start(features)

    def start(self, features: int | None = None) -> None:
        """As a driver does whose interface goes up, it asks for no more than is meant for it."""
        super().start(features)
        if has(self.features, F_CTRL_RX):
            assert self.control(0, 0, b"\0") == b"\0"

    def transmit(self, data: bytes, *, pair: int = 0, header: bytes = bytes(12)) -> None:
        assert self.send(2 * pair + 1, header + data) == b""

    def control(self, command_class: int, command: int, data: bytes = b"") -> bytes:
        index = next(
            i for i, queue in enumerate(self.net.queues_for(self.features)) if queue and queue.name == "controlq"
        )
        return self.send(index, bytes((command_class, command)) + data, [1])

    def arrive(
        self, cable: Cable, data: bytes, buffers: Sequence[Sequence[int]] = ((2048,),), pair: int = 0
    ) -> list[Buffers]:
        """Gives receive buffers, lets `data` come in, and returns the buffers in their order."""
        given = [self.give(2 * pair, sizes) for sizes in buffers]
        cable.send(data)
        self.run()
        return given

    def passes(self, cable: Cable, data: bytes) -> bool:
        """Whether a frame reaches the driver."""
        buffers = self.give(0, [4096])
        before = self.net.counters["received"]
        cable.send(data)
        self.run()
        if self.net.counters["received"] == before:
            assert not buffers.done
            taken = self.pop(0)
            assert taken is buffers.request
            return False
        assert buffers.written[12:] == data
        return True
