"""Grants of one domain: pages in memfds, under references, mappable by the one domain they were granted to."""

from __future__ import annotations

import bisect
import errno
import fcntl
import os
from typing import Final, NamedTuple

from emulator.local.errors import Refused
from emulator.local.limits import Account
from emulator.local.wire import MAX_RUNS, PAGE_SIZE

FIRST_REF: Final = 8
"""Xen keeps the first references for itself."""

SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
"""A size that no guest can change, so that no access to a mapped page ends in SIGBUS."""


class Share:
    """`count` pages granted together. Lives, and keeps its references, until withdrawn and no longer mapped.

    The descriptor is the broker's own: the ones given away are opened anew, since flags like O_APPEND belong to what
    is shared with a descriptor's other holders and would turn the clearing of a byte into an error.
    """

    __slots__ = ("count", "fd", "first", "grantee", "mapped", "withdrawn", "writable")

    def __init__(self, first: int, count: int, grantee: int, writable: bool) -> None:
        self.first = first
        self.count = count
        self.grantee = grantee
        self.writable = writable
        self.mapped = 0
        self.withdrawn = False
        fd = os.memfd_create("grant", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, count * PAGE_SIZE)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        except OSError:
            os.close(fd)
            raise
        self.fd = fd

    def open(self, writable: bool) -> int:
        """A new descriptor of the pages, to be given away."""
        mode = os.O_RDWR if writable else os.O_RDONLY
        return os.open(f"/proc/self/fd/{self.fd}", mode | os.O_CLOEXEC)


class Run(NamedTuple):
    """Consecutive pages of one share."""

    share: Share
    page: int
    pages: int


class GrantTable:
    """References are taken first fit from FIRST_REF."""

    def __init__(self, max_pages: int, account: Account) -> None:
        self._max_pages = max_pages
        self._account = account
        self._pages = 0
        self._firsts: list[int] = []
        self._shares: dict[int, Share] = {}

    def share(self, grantee: int, count: int, writable: bool) -> Share:
        """Raises Refused: EINVAL (count), ENOSPC; OSError."""
        if count == 0:
            raise Refused(errno.EINVAL)
        if count > self._max_pages - self._pages:
            raise Refused(errno.ENOSPC)
        free = FIRST_REF
        for first in self._firsts:
            if first - free >= count:
                break
            free = first + self._shares[first].count
        self._account.take(1)
        try:
            share = Share(free, count, grantee, writable)
        except OSError:
            self._account.give_back(1)
            raise
        self._shares[free] = share
        bisect.insort(self._firsts, free)
        self._pages += count
        return share

    def withdraw(self, share: Share) -> None:
        """No more mappings of it; who has one keeps it."""
        share.withdrawn = True
        self._free_if_unused(share)

    def map(self, grantee: int, first: int, count: int, writable: bool) -> list[Run]:
        """All or nothing. Raises Refused: EINVAL (count), ENOENT, EACCES, E2BIG (more than MAX_RUNS shares)."""
        if count == 0 or count > self._max_pages:
            raise Refused(errno.EINVAL)
        runs: list[Run] = []
        ref, end = first, first + count
        while ref < end:
            share = self._find(ref)
            if share.grantee != grantee or (writable and not share.writable):
                raise Refused(errno.EACCES)
            page = ref - share.first
            pages = min(end - ref, share.count - page)
            runs.append(Run(share, page, pages))
            if len(runs) > MAX_RUNS:
                raise Refused(errno.E2BIG)
            ref += pages
        for run in runs:
            run.share.mapped += 1
        return runs

    def unmap(self, runs: list[Run]) -> None:
        for run in runs:
            run.share.mapped -= 1
            self._free_if_unused(run.share)

    def _find(self, ref: int) -> Share:
        at = bisect.bisect_right(self._firsts, ref)
        if at == 0:
            raise Refused(errno.ENOENT)
        share = self._shares[self._firsts[at - 1]]
        if ref >= share.first + share.count or share.withdrawn:
            raise Refused(errno.ENOENT)
        return share

    def _free_if_unused(self, share: Share) -> None:
        if share.withdrawn and share.mapped == 0:
            del self._shares[share.first]
            self._firsts.remove(share.first)
            self._pages -= share.count
            os.close(share.fd)
            self._account.give_back(1)
