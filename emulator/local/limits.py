"""What one domain may take of the broker. dom0 is bound by none of the store's quotas, as with xenstored."""

from __future__ import annotations

import errno
import resource
from typing import Final, NamedTuple

from emulator.local.errors import Refused

LAST_DOMID: Final = 0x7FEF
"""Xen's DOMID_FIRST_RESERVED - 1."""


class Limits(NamedTuple):
    """Numbers of one domain unless said otherwise."""

    connections: int = 64
    """Of each socket."""
    descriptors: int = 1024
    """Held by the broker: 1 a connection, 1 a share, 2 a pair of ports. Not for dom0."""
    grant_pages: int = 65536
    ports: int = 1024
    dom0_ports: int = 65536
    mappings: int = 65536
    """Of one connection."""
    nodes: int = 1000
    node_size: int = 2048
    """Bytes of the value and the names of the children."""
    node_perms: int = 5
    watches: int = 128
    transactions: int = 10
    transaction_nodes: int = 1024
    pending_events: int = 1024
    """Different ones kept for one connection; dom0's too."""


def raise_descriptor_limit() -> int:
    """Takes all descriptors the system lets this process have; returns what one domain may take of them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return max(128, min(4096, hard // 32))


class Account:
    """Descriptors that the broker holds for one domain."""

    def __init__(self, limit: int | None) -> None:
        """`limit` None: none."""
        self._limit = limit
        self.used = 0

    def take(self, count: int) -> None:
        """Raises Refused ENOSPC."""
        if self._limit is not None and self.used + count > self._limit:
            raise Refused(errno.ENOSPC)
        self.used += count

    def give_back(self, count: int) -> None:
        self.used -= count
