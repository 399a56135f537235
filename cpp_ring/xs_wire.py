"""The xenstore wire protocol (Xen's public header io/xs_wire.h): message types, header, limits, error names."""

from __future__ import annotations

import errno
import struct
from typing import Final

XS_DIRECTORY: Final = 1
XS_READ: Final = 2
XS_GET_PERMS: Final = 3
XS_WATCH: Final = 4
XS_UNWATCH: Final = 5
XS_TRANSACTION_START: Final = 6
XS_TRANSACTION_END: Final = 7
XS_GET_DOMAIN_PATH: Final = 10
XS_WRITE: Final = 11
XS_MKDIR: Final = 12
XS_RM: Final = 13
XS_SET_PERMS: Final = 14
XS_WATCH_EVENT: Final = 15
XS_ERROR: Final = 16
XS_IS_DOMAIN_INTRODUCED: Final = 17
XS_RESET_WATCHES: Final = 21

HEADER: Final = struct.Struct("<IIII")
"""type, req_id, tx_id, length of the payload that follows."""

PAYLOAD_MAX: Final = 4096
SENT_MAX: Final = PAYLOAD_MAX - HEADER.size
"""What Linux takes by /dev/xen/xenbus, where the header counts."""
REL_PATH_MAX: Final = 2048
"""Bytes of a path, what /local/domain/<domid>/ takes not counted."""

ERRORS: Final = (
    "EINVAL", "EACCES", "EEXIST", "EISDIR", "ENOENT", "ENOMEM", "ENOSPC", "EIO",
    "ENOTEMPTY", "ENOSYS", "EROFS", "EBUSY", "EAGAIN", "EISCONN", "E2BIG", "EPERM",
)  # fmt: skip
"""The only errors that cross the wire, where they are text."""

ERROR_NUMBERS: Final[dict[str, int]] = {name: getattr(errno, name) for name in ERRORS} | {"EQUOTA": errno.ENOSPC}
"""EQUOTA is what oxenstored says for a quota that is used up."""
ERROR_NAMES: Final[dict[int, str]] = {ERROR_NUMBERS[name]: name for name in ERRORS}


def hint(kind: int, error: int) -> str:
    """What helps against a refusal of request `kind`; empty where the error's name says all."""
    if error == errno.ENOSPC or (kind == XS_WATCH and error == errno.E2BIG):
        return "; this domain's quota is used up: remove what it does not need in the store, or have dom0 raise it"
    return ""
