"""The store of a machine: what all connections to the `xenstored` sockets share."""

from __future__ import annotations

import errno
from collections.abc import Callable

from emulator.local.errors import Refused
from emulator.local.limits import Limits
from emulator.local.store_connection import StoreConnection
from emulator.local.transaction import Transaction, Tree
from emulator.local.tree import walk
from emulator.local.watches import Watches


class StoreServer:
    """`has_domain`: whether a domid is alive."""

    def __init__(self, limits: Limits, has_domain: Callable[[int], bool]) -> None:
        self.limits = limits
        self.has_domain = has_domain
        self.watches = Watches(limits)
        self._tree = Tree()
        self._transactions: dict[int, int] = {}
        self._talkative: dict[StoreConnection, None] = {}

    def transaction(self, domid: int, whole: bool = False) -> Transaction:
        return Transaction(self._tree, domid, self.limits, whole)

    def start_transaction(self, domid: int) -> Transaction:
        """One that a client keeps open. Raises Refused ENOSPC."""
        count = self._transactions.get(domid, 0)
        if domid != 0 and count >= self.limits.transactions:
            raise Refused(errno.ENOSPC)
        self._transactions[domid] = count + 1
        return self.transaction(domid)

    def transaction_ended(self, domid: int) -> None:
        self._transactions[domid] -= 1

    def has_output(self, connection: StoreConnection) -> None:
        """The connection is to be flushed at the end of this turn of the loop, so that equal events meet."""
        self._talkative[connection] = None

    def take_talkative(self) -> list[StoreConnection]:
        talkative = list(self._talkative)
        self._talkative.clear()
        return talkative

    def introduce(self, domid: int) -> None:
        """The nodes a toolstack makes for a domain, and @introduceDomain."""
        home = f"/local/domain/{domid}"
        own = ((domid, 0),)
        readable = ((0, 0), (domid, 1))
        setup = self.transaction(0, whole=True)
        nodes = (
            (home, b"", own),
            (f"{home}/domid", b"%d" % domid, readable),
            (f"{home}/name", b"Domain-%d" % domid, readable),
            (f"{home}/device", b"", own),
        )
        for path, value, perms in nodes:
            setup.write(path, value)
            setup.set_perms(path, perms)
        self.watches.fire(setup.commit())
        self.watches.fire_special("@introduceDomain")

    def release(self, domid: int) -> None:
        """The end of a domain. Its home, what serves it and all it owns go: the next one of that number is another."""
        removal = self.transaction(0, whole=True)
        owned = [path for path, node in walk("/", self._tree.root) if node.owner == domid or _serves(path, domid)]
        for path in [f"/local/domain/{domid}", *owned]:
            try:
                removal.rm(path)
            except Refused:
                continue  # went with an ancestor
        self.watches.fire(removal.commit())
        self.watches.fire_special("@releaseDomain")


def _serves(path: str, domid: int) -> bool:
    """Is it a backend's directory for this frontend: /local/domain/<be>/backend/<type>/<fe>?"""
    parts = path.split("/")
    return len(parts) == 7 and parts[1:3] == ["local", "domain"] and parts[4] == "backend" and parts[6] == str(domid)
