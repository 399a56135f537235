"""From `local[:NAME]` on the command line to the hypervisor and the store of one domain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cpp_ring import Hypervisor, LocalHypervisor
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


def open_domain(name: str, domid: int) -> Domain:
    """`name`: "local" or "local:MACHINE". Raises ValueError (what to say instead), HostError, StoreError."""
    kind, _, machine = name.partition(":")
    if kind == "xen":
        raise ValueError("this build has no Xen support: use --hypervisor local[:NAME]")
    if kind != "local":
        raise ValueError(f"unknown hypervisor {name!r}: use local[:NAME]")
    if not 0 <= domid <= 0x7FEF:
        raise ValueError(f"domain {domid} is outside 0..32751")
    return open_local(machine_directory(machine or DEFAULT_MACHINE), domid)
