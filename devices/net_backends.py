"""Where the frames of a virtio-net device go to and come from: a tap interface, or a datagram socket.

Both are non-blocking. Frames are Ethernet frames without a check sequence. A packet is a frame after its struct
virtio_net_hdr (`devices.net_header`), which only a tap interface with offloads knows; elsewhere it is `PLAIN`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import stat
import struct
from pathlib import Path
from typing import NoReturn, Protocol

from devices.errors import DeviceError, InUse, NotPermitted
from devices.features import has
from devices.net_config import F_GUEST_CSUM, F_GUEST_ECN, F_GUEST_TSO4, F_GUEST_TSO6
from devices.net_header import HEADER_BYTES, MAX_MTU, PLAIN

# Ethernet header with one VLAN tag, and the largest MTU there is (virtio 1.3 section 5.1.4.1).
MAX_FRAME = 18 + 65535
MAX_SOCKET_PATH = 107

_TUN = Path("/dev/net/tun")
_INTERFACES = Path("/sys/class/net")
_STATUS = Path("/proc/self/status")
_INTERFACE_NAME = 15
_CAP_NET_ADMIN = 12  # linux/capability.h
# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_TUNSETVNETHDRSZ = 0x400454D8
_TUNSETOFFLOAD = 0x400454D0
_TUN_F = {F_GUEST_CSUM: 0x01, F_GUEST_TSO4: 0x02, F_GUEST_TSO6: 0x04, F_GUEST_ECN: 0x08}


class NetBackend(Protocol):
    """One side of a virtual cable."""

    @property
    def name(self) -> str:
        """What it is, the same each time: "tap vif1.0"."""

    @property
    def carries_headers(self) -> bool:
        """Whether the other end knows headers, so that offloads can be offered."""

    def mtu(self) -> int:
        """Largest packet, in bytes after the Ethernet header, that the host's interface has now."""

    def check(self) -> None:
        """Looks whether `open` can succeed. Raises DeviceError."""

    def open(self) -> None:
        """Raises DeviceError."""

    def close(self) -> None:
        """Idempotent."""

    def fileno(self) -> int:
        """Readable while `receive` has a frame."""

    def set_offloads(self, offloads: int) -> None:
        """What may be received from now on: a set of VIRTIO_NET_F_GUEST_* bits that keeps their dependencies, empty
        unless headers are carried. Raises OSError.
        """

    def receive(self) -> memoryview | None:
        """The next packet, or None if there is none now; the caller's to change, until the next call. Raises OSError if
        none will ever come.
        """

    def send(self, frame: memoryview, header: bytes = PLAIN) -> bool:
        """False if the frame was dropped. Raises nothing. `header` is PLAIN unless headers are carried."""


def may_make_interfaces() -> bool:
    """Whether this process has CAP_NET_ADMIN, without which it gets only a tap interface that was made for its user."""
    try:
        (line,) = [line for line in _STATUS.read_text().splitlines() if line.startswith("CapEff:")]
    except (OSError, ValueError):
        return True  # not known: the kernel will say
    return int(line.split()[1], 16) >> _CAP_NET_ADMIN & 1 != 0


def taps_of_this_user() -> list[str]:
    """Names of the tap interfaces that are there and that this process may use without CAP_NET_ADMIN."""
    return sorted(node.parent.name for node in _INTERFACES.glob("*/tun_flags") if _is_ours(node.parent))


def _is_ours(interface: Path) -> bool:
    """As the kernel decides for who lacks CAP_NET_ADMIN (tun_not_capable): -1 stands for anybody."""
    try:
        owner, group = (int((interface / name).read_text()) for name in ("owner", "group"))
    except (OSError, ValueError):
        return True  # not known: the kernel will say
    return owner in (-1, os.geteuid()) and (group == -1 or group in (os.getegid(), *os.getgroups()))


class TapBackend:
    """A tap interface of the host; made by `open` unless it is there, and then gone at `close`. Bringing it up is its
    owner's business.

    offloads  whether packets carry headers between the kernel and the driver
    """

    def __init__(self, interface: str, *, offloads: bool = False) -> None:
        if not 0 < len(interface) <= _INTERFACE_NAME or not interface.isascii() or set(interface) & set("/: %\n\t"):
            raise ValueError(f"tap={interface} is no interface name of 1 to {_INTERFACE_NAME} characters")
        self._interface = interface
        self._offloads = offloads
        self._fd = -1
        self._packet, self._frame = _packet_memory()

    @property
    def name(self) -> str:
        return f"tap {self._interface}"

    @property
    def carries_headers(self) -> bool:
        return self._offloads

    def mtu(self) -> int:
        try:
            return int((_INTERFACES / self._interface / "mtu").read_text())
        except (OSError, ValueError):
            return MAX_MTU

    def check(self) -> None:
        if not _TUN.exists():
            raise DeviceError(f"{self.name}: {_TUN}: not there; load the module tun")
        if not os.access(_TUN, os.R_OK | os.W_OK):
            raise NotPermitted(f"{self.name}: {_TUN}: not allowed to use it; run as root")
        directory = _INTERFACES / self._interface
        if directory.exists() and not (directory / "tun_flags").exists():
            raise DeviceError(f"{self.name}: the interface is there and is no tap; name another")
        if not (directory.exists() or may_make_interfaces()):
            user = os.geteuid()
            way = f"as root: `ip tuntap add dev {self._interface} mode tap user {user}`"
            raise NotPermitted(f"{self.name}: user {user} may not make it (no CAP_NET_ADMIN); {way}")
        if directory.exists():
            if not (_is_ours(directory) or may_make_interfaces()):
                text = "made for another user, and no CAP_NET_ADMIN; run as that one, or as root"
                raise NotPermitted(f"{self.name}: {text}")
            # One that is there does not go by this, and only the kernel knows whether somebody has it.
            self.open()
            self.close()

    def open(self) -> None:
        try:
            self._fd = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            flags = _IFF_TAP | _IFF_NO_PI | (_IFF_VNET_HDR if self._offloads else 0)
            fcntl.ioctl(self._fd, _TUNSETIFF, struct.pack("16sH14x", self._interface.encode(), flags))
            if self._offloads:
                fcntl.ioctl(self._fd, _TUNSETVNETHDRSZ, struct.pack("i", HEADER_BYTES))
            self.set_offloads(0)  # an interface that was there keeps what its last user set
        except OSError as error:
            self.close()
            if error.errno == errno.EBUSY:
                raise DeviceError(f"{self.name}: in use already; stop what uses it, or name another") from error
            kind = NotPermitted if error.errno == errno.EPERM else DeviceError
            raise kind(f"{self.name}: {(error.strerror or '').lower()}") from error

    def close(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                self.set_offloads(0)  # the next user of an interface that stays may not know headers
            os.close(self._fd)
            self._fd = -1

    def fileno(self) -> int:
        return self._fd

    def set_offloads(self, offloads: int) -> None:
        if self._fd < 0:
            return
        fcntl.ioctl(self._fd, _TUNSETOFFLOAD, sum(flag for bit, flag in _TUN_F.items() if has(offloads, bit)))

    def receive(self) -> memoryview | None:
        try:
            if self._offloads:
                return self._packet[: os.readv(self._fd, (self._packet,))]
            return self._packet[: HEADER_BYTES + os.readv(self._fd, (self._frame,))]
        except BlockingIOError:
            return None

    def send(self, frame: memoryview, header: bytes = PLAIN) -> bool:
        try:
            if self._offloads:
                return os.writev(self._fd, (header, frame)) == HEADER_BYTES + len(frame)
            return os.write(self._fd, frame) == len(frame)
        except OSError:  # the interface is down, its queue is full, or it has its own mind about the header
            return False


class SocketBackend:
    """A datagram socket at `path` that sends to the one at `peer`: a cable without privilege.

    Frames sent while there is no peer are dropped. A socket file that a dead process left at `path` is replaced; one
    that is in use is not.
    """

    # A socket takes few datagrams (net.unix.max_dgram_qlen, often 10), so a burst has to wait for the peer to read. A
    # peer that read nothing for this long is waited for again only after it took a frame.
    PATIENCE_MS = 2

    def __init__(self, path: Path, peer: Path) -> None:
        for each in (path, peer):
            if len(os.fsencode(each)) > MAX_SOCKET_PATH:
                raise ValueError(f"socket path {each} is longer than {MAX_SOCKET_PATH} bytes")
        if path == peer:
            raise ValueError(f"socket and peer are the same path {path}")
        self._path = path
        self._peer = peer
        self._receiver: socket.socket | None = None
        # Not the receiver: connected, it would hear only this one incarnation of its peer.
        self._sender: socket.socket | None = None
        self._congested = False
        self._packet, self._frame = _packet_memory()

    @property
    def name(self) -> str:
        return f"socket {self._path}"

    @property
    def carries_headers(self) -> bool:
        return False

    def mtu(self) -> int:
        return MAX_MTU

    def check(self) -> None:
        directory = self._path.parent
        if not directory.is_dir():
            raise DeviceError(f"{self.name}: no directory {directory}")
        if not os.access(directory, os.W_OK | os.X_OK):
            raise DeviceError(f"{self.name}: not allowed to make files in {directory}")
        try:
            if os.path.lexists(self._path) and not self._left_over():
                self._refuse_taken()
        except OSError as error:
            raise DeviceError(f"{self.name}: {(error.strerror or str(error)).lower()}") from error

    def open(self) -> None:
        self._receiver = _datagram_socket()
        try:
            self._bind(self._receiver)
        except BaseException:
            self._receiver.close()
            self._receiver = None
            raise

    def close(self) -> None:
        self._disconnect()
        if self._receiver is not None:
            self._path.unlink(missing_ok=True)
            self._receiver.close()
            self._receiver = None

    def fileno(self) -> int:
        return -1 if self._receiver is None else self._receiver.fileno()

    def set_offloads(self, offloads: int) -> None:
        pass

    def receive(self) -> memoryview | None:
        if self._receiver is None:
            return None
        try:
            return self._packet[: HEADER_BYTES + self._receiver.recv_into(self._frame)]
        except BlockingIOError:
            return None

    def send(self, frame: memoryview, header: bytes = PLAIN) -> bool:
        # Twice: the peer may have restarted since the last frame, and what we are connected to is gone.
        return self._send_connected(frame) or (self._sender is None and self._send_connected(frame))

    def _send_connected(self, frame: memoryview) -> bool:
        try:
            if self._sender is None:
                sender = _datagram_socket()
                try:
                    sender.connect(os.fspath(self._peer))
                except OSError:
                    sender.close()
                    return False
                self._sender = sender
            return self._send_or_wait(self._sender, frame)
        except OSError:
            self._disconnect()
            return False

    def _send_or_wait(self, sender: socket.socket, frame: memoryview) -> bool:
        for attempt in range(2):
            try:
                sender.send(frame)
            except BlockingIOError:
                if attempt or self._congested:
                    return False
                poll = select.poll()
                poll.register(sender, select.POLLOUT)
                self._congested = not poll.poll(self.PATIENCE_MS)
            else:
                self._congested = False
                return True
        return False

    def _disconnect(self) -> None:
        if self._sender is not None:
            self._sender.close()
            self._sender = None
        self._congested = False

    def _bind(self, receiver: socket.socket) -> None:
        path = os.fspath(self._path)
        try:
            if self._left_over():
                self._path.unlink(missing_ok=True)
            receiver.bind(path)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                self._refuse_taken()
            raise DeviceError(f"{self.name}: {(error.strerror or str(error)).lower()}") from error

    def _refuse_taken(self) -> NoReturn:
        """Raises DeviceError: there is something at the path that is not left over."""
        if self._path.is_socket():
            raise InUse("socket", self._path)
        raise DeviceError(f"{self.name}: there is a file of that name, which is no socket; name another")

    def _left_over(self) -> bool:
        """Whether there is a socket at the path that nobody has open."""
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(self._path.lstat().st_mode):
                return False
            with _datagram_socket() as probe:
                try:
                    probe.connect(os.fspath(self._path))
                except ConnectionRefusedError:
                    return True
        return False


def _packet_memory() -> tuple[memoryview, memoryview]:
    """Room for a packet, one byte more than the longest so that what is longer is told from it; and its frame."""
    packet = memoryview(bytearray(HEADER_BYTES + MAX_FRAME + 1))
    return packet, packet[HEADER_BYTES:]


def _datagram_socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
