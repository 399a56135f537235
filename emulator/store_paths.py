"""Where devices of type virtio-msg are in xenstore, and the xenbus states (docs/protocol.md section 4)."""

from __future__ import annotations

import errno
from enum import IntEnum

from cpp_ring.store import Access, StoreError

DEVICE_TYPE = "virtio-msg"


class State(IntEnum):
    """Xenbus states; UNKNOWN stands for a node that is not there."""

    UNKNOWN = 0
    INITIALISING = 1
    INIT_WAIT = 2
    INITIALISED = 3
    CONNECTED = 4
    CLOSING = 5
    CLOSED = 6
    RECONFIGURING = 7
    RECONFIGURED = 8


def domain_dir(domid: int) -> str:
    return f"/local/domain/{domid}"


def frontends_dir(frontend: int) -> str:
    """The directory of all devices of a domain, in its own part of the store."""
    return f"/local/domain/{frontend}/device/{DEVICE_TYPE}"


def frontend_dir(frontend: int, devid: int) -> str:
    return f"{frontends_dir(frontend)}/{devid}"


def all_backends_dir(backend: int) -> str:
    """The directory whose children are the domids that have devices."""
    return f"/local/domain/{backend}/backend/{DEVICE_TYPE}"


def backends_dir(backend: int, frontend: int) -> str:
    """The directory of all devices that `backend` serves to `frontend`."""
    return f"{all_backends_dir(backend)}/{frontend}"


def backend_dir(backend: int, frontend: int, devid: int) -> str:
    return f"{backends_dir(backend, frontend)}/{devid}"


def children(store: Access, directory: str) -> list[str]:
    """Names below a directory; none if it is not there. Raises StoreError."""
    try:
        return store.directory(directory)
    except StoreError as error:
        if error.errno == errno.ENOENT:
            return []
        raise
