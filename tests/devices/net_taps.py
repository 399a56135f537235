"""Tap interfaces of tests: one that is none, and real ones with the kernel's side of them."""

import os
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from devices.net_backends import TapBackend

ETH_IP = 0x0800
_SET_OFFLOAD = 0x400454D0
_SOL_PACKET, _PACKET_VNET_HDR = 263, 15


class Kernel:
    """The kernel's side of a tap interface that is none: what goes through it, and what it leaves undone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.socket, self._device = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.offloads: list[int] = []
        self.fails = False
        monkeypatch.setattr(TapBackend, "open", lambda tap: setattr(tap, "_fd", os.dup(self._device.fileno())))
        monkeypatch.setattr("fcntl.ioctl", self._ioctl)

    def _ioctl(self, _: int, request: int, value: int) -> int:
        assert request == _SET_OFFLOAD
        if self.fails:
            raise OSError(77, "file descriptor in bad state")
        self.offloads.append(value)
        return 0

    def receive(self) -> bytes | None:
        try:
            return self.socket.recv(1 << 17)
        except BlockingIOError:
            return None

    def send(self, packet: bytes) -> None:
        self.socket.send(packet)

    def close(self) -> None:
        self.socket.close()
        self._device.close()


@contextmanager
def tap_interface() -> Iterator[str]:
    """A tap interface that somebody made, and that nobody has. Skips the test where that cannot be."""
    if shutil.which("ip") is None:
        pytest.skip("no command ip")
    if os.geteuid() != 0 or not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip("no /dev/net/tun for us")
    name = f"vdm{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "tuntap", "add", "dev", name, "mode", "tap"], check=True)
    try:
        yield name
    finally:
        subprocess.run(["ip", "link", "delete", name], check=True)


@contextmanager
def host_of(interface: str, protocol: int) -> Iterator[socket.socket]:
    """A packet socket on the interface that gives and takes headers, which are of 10 bytes.

    For when a driver is there: an interface that is up before carries nothing for a while after.
    """
    subprocess.run(["ip", "link", "set", interface, "up"], check=True)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol)) as packets:
        packets.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        packets.settimeout(10)
        packets.bind((interface, protocol))
        yield packets
