"""Where devices of type virtio-msg are in xenstore, and the xenbus states (docs/protocol.md section 4)."""

from __future__ import annotations

import errno

from cpp_ring.store import Access, StoreError
from cpp_ring.xenbus_states import State as State  # what is in the nodes, beside where they are

DEVICE_TYPE = "virtio-msg"


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
