"""The machine a command works on: which hypervisor, its store, its grants, and where locks are kept."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cpp_ring.store import Store, StoreError
from emulator.exit_codes import ExitCode, Failure

if TYPE_CHECKING:
    from cpp_ring import Hypervisor

XEN_SIGNS = (Path("/dev/xen/evtchn"), Path("/run/xenstored/socket"))
LAST_DOMID = 0x7FEF


@dataclass(frozen=True, slots=True)
class HypervisorName:
    """`xen`, or `local` with the name of a machine."""

    kind: str
    machine: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.machine}" if self.machine else self.kind


def parse_hypervisor(text: str | None) -> HypervisorName:
    """Reads `xen`, `local` or `local:NAME`; None is xen where there is a Xen, else local. Raises ValueError."""
    if text is None:
        text = "xen" if any(sign.exists() for sign in XEN_SIGNS) else "local"
    kind, colon, machine = text.partition(":")
    if kind == "xen" and not colon:
        return HypervisorName("xen")
    if kind == "local" and (machine or not colon):
        return HypervisorName("local", machine or "default")
    raise ValueError(f"hypervisor {text!r} is none of xen, local, local:NAME")


@dataclass(frozen=True, slots=True)
class Machine:
    """A hypervisor that answers, seen from the domain that serves devices."""

    name: HypervisorName
    directory: Path
    """Locks of this machine's emulators; for a local machine the broker's directory."""
    backend: int = 0
    """The domain this process runs in."""

    def open_store(self) -> Store:
        """A connection of its own. Raises Failure."""
        from emulator.local import MachineError, socket_path

        try:
            return Store.open(socket_path(self.directory, self.backend, "xenstored"))
        except (StoreError, MachineError) as error:
            raise unavailable(error) from error

    def open_hypervisor(self) -> Hypervisor:
        """Grants and event channels, as the backend's domain. Raises Failure."""
        try:
            from cpp_ring import HostError, LocalHypervisor
        except ImportError as error:
            raise Failure(ExitCode.NOT_INSTALLED, str(error)) from error
        try:
            return LocalHypervisor(str(self.directory), self.backend)
        except HostError as error:
            raise unavailable(error) from error

    def domain_directory(self, domid: int) -> Path:
        """Where the locks of a domain's emulator are."""
        return self.directory / f"dom{domid}"


def open_machine(name: HypervisorName) -> Machine:
    """The machine of that name; the broker of a local one is started on demand. Raises Failure."""
    if name.kind == "xen":
        raise Failure(
            ExitCode.NO_HYPERVISOR,
            "this build has no Xen support; use --hypervisor local, which needs no Xen and no root",
        )
    from emulator.local import MachineError, ensure_broker

    try:
        return Machine(name, ensure_broker(name.machine))
    except MachineError as error:
        raise unavailable(error) from error


def require_domain(machine: Machine, store: Store, domid: int) -> None:
    """Raises Failure unless the domain is there."""
    if not 0 < domid <= LAST_DOMID:
        raise Failure(ExitCode.NO_DOMAIN, f"domain {domid} cannot have devices; domids are 1 to {LAST_DOMID}")
    if not store.is_domain_introduced(domid):
        raise Failure(
            ExitCode.NO_DOMAIN,
            f"no domain {domid} on {machine.name}; `virtio-dm local {machine.name.machine} --create {domid}` makes one",
        )


def unavailable(error: OSError) -> Failure:
    """What a hypervisor's refusal means for a command."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return Failure(ExitCode.NOT_PERMITTED, str(error))
    return Failure(ExitCode.USAGE if error.errno == errno.EINVAL else ExitCode.NO_HYPERVISOR, str(error))
