"""A domain of a local machine: its grants, its ports, and what it may take."""

from __future__ import annotations

from emulator.local.grants import GrantTable
from emulator.local.limits import Account, Limits
from emulator.local.ports import PortTable


class Domain:
    """Belongs to no process: several may connect as one domain."""

    def __init__(self, domid: int, limits: Limits) -> None:
        self.domid = domid
        self.account = Account(None if domid == 0 else limits.descriptors)
        self.grants = GrantTable(limits.grant_pages, self.account)
        self.ports = PortTable(domid, limits.ports if domid else limits.dom0_ports, self.account)
