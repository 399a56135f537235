"""Where this domain of a real Xen finds its store, and which domain it is."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final

from cpp_ring.store import Store, StoreError
from cpp_ring.store_values import parse_u32

DEVICES: Final = Path("/dev/xen")
XENBUS: Final = DEVICES / "xenbus"
"""The kernel's way to the store: in every domain, once xenfs or its device is there."""

SOCKETS: Final = (Path("/run/xenstored/socket"), Path("/var/run/xenstored/socket"))
"""xenstored's, in the domain it runs in."""

LAST_DOMID: Final = 0x7FEF


def store_path() -> Path | None:
    """The store of this domain; None outside of Xen."""
    return next((path for path in (*SOCKETS, XENBUS) if path.exists()), None)


def open_store() -> Store:
    """A connection of its own. Raises StoreError, which says what to do."""
    path = store_path()
    if path is None:
        raise StoreError(errno.ENOENT, f"no Xen here: there is neither {SOCKETS[0]} nor {XENBUS}")
    try:
        return Store.open(path)
    except StoreError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise StoreError(error.errno, f"{error}; only root may use it") from None
        raise


def own_domid(store: Store) -> int:
    """The number of this domain. Raises StoreError."""
    text = store.read_optional("domid")
    try:
        return 0 if text is None else parse_u32(text, LAST_DOMID)  # a dom0 that nobody told
    except ValueError as error:
        raise StoreError(errno.EPROTO, f"the store's domid is {error}") from None
