"""From `xen` or `local[:NAME]` on the command line to the hypervisor and the store of one domain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cpp_ring import Hypervisor, LocalHypervisor, xen
from cpp_ring.machine import DEFAULT_MACHINE, machine_directory
from cpp_ring.store import Store


@dataclass(frozen=True, slots=True)
class Domain:
    """What a driver needs of the domain it runs in."""

    hypervisor: Hypervisor
    open_store: Callable[[], Store]
    """A new connection to xenstore as this domain. Every device has its own, so that it sees all of its watches."""


def open_local(directory: Path, domid: int) -> Domain:
    """Domain `domid` of the local machine in `directory`. Raises HostError, StoreError."""
    hypervisor = LocalHypervisor(str(directory), domid)
    return Domain(hypervisor, lambda: Store.open(directory / f"dom{domid}" / "xenstored"))


def open_xen() -> Domain:
    """The domain this process runs in. Raises HostError, StoreError, ValueError (what to install)."""
    with xen.open_store() as store:
        domid = xen.own_domid(store)
    try:
        from cpp_ring import XenHypervisor
    except (ImportError, AttributeError):
        raise ValueError("this build has no Xen support: install libxen-dev and pkg-config, then build again") from None
    return Domain(XenHypervisor(domid), xen.open_store)


def open_domain(name: str, domid: int | None) -> Domain:
    """`name`: "xen", "local" or "local:MACHINE"; `domid`: which domain of a local machine to be.

    Raises ValueError (what to say instead), HostError, StoreError.
    """
    kind, colon, machine = name.partition(":")
    if kind == "xen" and not colon:
        domain = open_xen()
        if domid not in (None, domain.hypervisor.domid):
            raise ValueError(f"this is domain {domain.hypervisor.domid}, not {domid}: leave --domid out on Xen")
        return domain
    if kind != "local":
        raise ValueError(f"unknown hypervisor {name!r}: use xen or local[:NAME]")
    if domid is None:
        raise ValueError("which domain is this process to be? say --domid N")
    if not 0 <= domid <= 0x7FEF:
        raise ValueError(f"domain {domid} is outside 0..32751")
    return open_local(machine_directory(machine or DEFAULT_MACHINE), domid)
