"""The states of xenbus (xen/include/public/io/xenbus.h), which both ends of a device write into the store."""

from __future__ import annotations

from enum import IntEnum


class State(IntEnum):
    """Xenbus states; UNKNOWN stands for a node that is not there, too."""

    UNKNOWN = 0
    INITIALISING = 1
    INIT_WAIT = 2
    INITIALISED = 3
    CONNECTED = 4
    CLOSING = 5
    CLOSED = 6
    RECONFIGURING = 7
    RECONFIGURED = 8
