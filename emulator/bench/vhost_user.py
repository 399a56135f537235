"""`peer.vhost-user`: GET_CONFIG to qemu-storage-daemon, how a vhost-user frontend reads configuration space."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cpp_ring import LatencyRecorder
from emulator.bench.errors import ProcessFailed

# vhost-user protocol: header u32 request, flags, size; flags bit 0..1 version 1, bit 2 reply.
_HEADER = struct.Struct("<III")
_VERSION = 1
_GET_FEATURES, _SET_OWNER, _GET_PROTOCOL_FEATURES, _SET_PROTOCOL_FEATURES, _GET_CONFIG = 1, 3, 15, 16, 24
_F_CONFIG = 1 << 9
_SIZE = 4  # bytes of configuration read, as in config.get


def installed() -> bool:
    """Is qemu-storage-daemon there? (Debian: qemu-system-common.)"""
    return shutil.which("qemu-storage-daemon") is not None


class _Client:
    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(2)
        self._socket.connect(str(path))
        self._ask(_GET_FEATURES)
        self._send(_SET_OWNER)
        offered = struct.unpack("<Q", self._ask(_GET_PROTOCOL_FEATURES))[0]
        if not offered & _F_CONFIG:
            raise ProcessFailed("qemu-storage-daemon offers no configuration space over vhost-user")
        self._send(_SET_PROTOCOL_FEATURES, struct.pack("<Q", _F_CONFIG))

    def _send(self, request: int, payload: bytes = b"") -> None:
        self._socket.sendall(_HEADER.pack(request, _VERSION, len(payload)) + payload)

    def _ask(self, request: int, payload: bytes = b"") -> bytes:
        self._send(request, payload)
        size = _HEADER.unpack(self._receive(_HEADER.size))[2]
        return self._receive(size)

    def _receive(self, size: int) -> bytes:
        data = self._socket.recv(size, socket.MSG_WAITALL)
        if len(data) != size:
            raise ConnectionError("qemu-storage-daemon closed the connection")
        return data

    def measure(self, count: int, recorder: LatencyRecorder) -> None:
        payload = struct.pack("<III", 0, _SIZE, 0) + bytes(_SIZE)
        for _ in range(10):
            self._ask(_GET_CONFIG, payload)
        clock = time.perf_counter_ns
        for _ in range(count):
            start = clock()
            self._ask(_GET_CONFIG, payload)
            recorder.record(clock() - start)

    def close(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def vhost_user(cpu: int) -> Iterator[_Client]:
    """Starts qemu-storage-daemon on the server's core with a 1 MiB disk, and connects to it."""
    with tempfile.TemporaryDirectory(prefix="virtio-dm-") as name:
        directory = Path(name)
        disk, path = directory / "disk", directory / "socket"
        disk.write_bytes(bytes(1 << 20))
        process = subprocess.Popen(
            [
                "qemu-storage-daemon",
                *("--blockdev", f"driver=file,node-name=f0,filename={disk}"),
                *("--export", f"type=vhost-user-blk,id=e0,addr.type=unix,addr.path={path},node-name=f0,writable=on"),
            ],
            stdin=subprocess.DEVNULL,
        )
        try:
            os.sched_setaffinity(process.pid, {cpu})
            deadline = time.monotonic() + 5
            while not path.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise ProcessFailed("qemu-storage-daemon did not start")
                time.sleep(0.01)
            client = _Client(path)
            try:
                yield client
            finally:
                client.close()
        finally:
            process.terminate()
            process.wait(5)
