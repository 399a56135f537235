"""The `hypervisor` socket of a local machine: requests, replies, and one exchange (docs/local.md)."""

from __future__ import annotations

import os
import socket
import struct
from typing import Final, NamedTuple

VERSION: Final = 1

HELLO: Final = 0
GRANT_SHARE: Final = 1
GRANT_UNSHARE: Final = 2
GRANT_MAP: Final = 3
GRANT_UNMAP: Final = 4
EVTCHN_ALLOC_UNBOUND: Final = 5
EVTCHN_BIND_INTERDOMAIN: Final = 6
EVTCHN_CLOSE: Final = 7
# For dom0 alone.
DOMAIN_CREATE: Final = 16
DOMAIN_DESTROY: Final = 17
DOMAIN_LIST: Final = 18
STOP: Final = 19
PLAN_FAULT: Final = 32
PLAN_STORM: Final = 33
PLAN_CLEAR: Final = 34

WRITABLE: Final = 1
NOTIFY: Final = 2

ANY: Final = 0xFFFFFFFF
"""In a fault plan: any operation, any domain, every time."""

ARGUMENTS: Final = 7
REQUEST: Final = struct.Struct("<8I")
"""op, seven arguments; those an operation does not use are 0."""
REPLY: Final = struct.Struct("<4I")
"""errno (0: done), value, number of records that follow, 0."""
RUN: Final = struct.Struct("<2I")
"""Record of GRANT_MAP, one for each descriptor: first page in the memfd, number of pages."""
DOMAIN: Final = struct.Struct("<I")
"""Record of DOMAIN_LIST: domid."""

MAX_RUNS: Final = 64
MAX_REPLY: Final = 65536
PAGE_SIZE: Final = 4096


class Reply(NamedTuple):
    """A reply that is not an error. Who gets it closes the descriptors."""

    value: int
    records: bytes
    fds: list[int]


def exchange(connection: socket.socket, op: int, *arguments: int) -> Reply:
    """One request, one reply. Raises OSError with the errno of the reply, ConnectionResetError without a reply."""
    connection.send(REQUEST.pack(op, *arguments, *[0] * (ARGUMENTS - len(arguments))), socket.MSG_NOSIGNAL)
    data, fds, _, _ = socket.recv_fds(connection, MAX_REPLY, MAX_RUNS, socket.MSG_CMSG_CLOEXEC)
    if len(data) < REPLY.size:
        raise ConnectionResetError("the broker closed the connection")
    error, value, _, _ = REPLY.unpack_from(data)
    if error:
        for fd in fds:
            os.close(fd)
        raise OSError(error, os.strerror(error))
    return Reply(value, data[REPLY.size :], fds)
