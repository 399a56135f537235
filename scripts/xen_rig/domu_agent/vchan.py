"""libxenvchan, a byte stream between two domains over granted pages. Never blocks but in `acknowledge`, see there."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Final

RING_SIZE: Final = 1 << 16
"""Bytes in each direction."""
STORE_PATH: Final = "data/rig"
"""Below the domU's home, where the domU may write; the server's page and port stand there."""


class _Head(ctypes.Structure):
    """How `struct libxenvchan` of libxenvchan.h begins: public, and the only way to switch blocking off."""

    _fields_ = [
        ("gnttab", ctypes.c_void_p),
        ("ring", ctypes.c_void_p),
        ("event", ctypes.c_void_p),
        ("event_port", ctypes.c_uint32),
        ("is_server", ctypes.c_int, 1),
        ("server_persist", ctypes.c_int, 1),
        ("blocking", ctypes.c_int, 1),
    ]


class VchanError(OSError):
    """The library could not do it."""


def _library() -> ctypes.CDLL:
    # Its version is Xen's, and changes with it; nothing but the newest can be there.
    for directory in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib"):
        for path in sorted(Path(directory).glob("libxenvchan.so.*"), reverse=True):
            library = ctypes.CDLL(str(path), use_errno=True)
            for name in ("libxenvchan_server_init", "libxenvchan_client_init"):
                getattr(library, name).restype = ctypes.c_void_p
            return library
    raise VchanError("libxenvchan is not here: this runs in the rig's domains only")


class Vchan:
    """One end. `fileno` is readable when something has changed: then `acknowledge`, and read and write again."""

    def __init__(self, library: ctypes.CDLL, handle: int) -> None:
        self._library = library
        self._handle: ctypes.c_void_p | None = ctypes.c_void_p(handle)
        ctypes.cast(self._handle, ctypes.POINTER(_Head)).contents.blocking = 0

    @classmethod
    def server(cls, client_domid: int) -> Vchan:
        library = _library()
        size = ctypes.c_size_t(RING_SIZE)
        handle = library.libxenvchan_server_init(None, client_domid, STORE_PATH.encode(), size, size)
        if not handle:
            raise VchanError(ctypes.get_errno(), "cannot offer a vchan")
        return cls(library, handle)

    @classmethod
    def client(cls, server_domid: int) -> Vchan:
        """Raises VchanError as long as there is no server."""
        library = _library()
        path = f"/local/domain/{server_domid}/{STORE_PATH}"
        handle = library.libxenvchan_client_init(None, server_domid, path.encode())
        if not handle:
            raise VchanError(ctypes.get_errno(), f"no vchan at {path}")
        return cls(library, handle)

    def fileno(self) -> int:
        return int(self._library.libxenvchan_fd_for_select(self._handle))

    def acknowledge(self) -> None:
        """Takes the event that made `fileno` readable; waits for one if there is none."""
        if self._library.libxenvchan_wait(self._handle):
            raise VchanError(ctypes.get_errno(), "the event channel of a vchan failed")

    def read(self) -> bytes | None:
        """What is there, b"" if nothing is; None once the other end has closed."""
        buffer = ctypes.create_string_buffer(RING_SIZE)
        count = self._library.libxenvchan_read(self._handle, buffer, ctypes.c_size_t(RING_SIZE))
        return None if count < 0 else buffer.raw[:count]

    def write(self, data: bytes) -> int:
        """How much of it there was room for; -1 once the other end has closed."""
        return int(self._library.libxenvchan_write(self._handle, data, ctypes.c_size_t(len(data))))

    def close(self) -> None:
        """Twice is once."""
        if self._handle is not None:
            self._library.libxenvchan_close(self._handle)
            self._handle = None
