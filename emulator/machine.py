"""The machine a command works on: which hypervisor, its store, its grants, and where locks are kept."""

from __future__ import annotations

import dataclasses
import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cpp_ring import xen
from cpp_ring.store import Store, StoreError
from emulator.exit_codes import ExitCode, Failure

if TYPE_CHECKING:
    from cpp_ring import Hypervisor

LAST_DOMID = 0x7FEF
DEFAULT_MAP_BUDGET = 256
"""MiB of a domain's memory that its emulator has mapped at a time at most."""
LARGEST_MAP_BUDGET = 1 << 20
PAGES_PER_MIB = 256


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
        text = "xen" if xen.store_path() else "local"
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
    store_path: Path
    backend: int = 0
    """The domain that serves devices: the one this process runs in, unless a toolstack acts for another one."""
    elsewhere: bool = False
    """Whether the backend is another domain than ours: its processes and locks cannot be seen from here."""

    def of_backend(self, domid: int | None) -> Machine:
        """The same with the devices that domain `domid` serves; None: the domain this process runs in."""
        if domid is None or domid == self.backend:
            return self
        return dataclasses.replace(self, backend=domid, elsewhere=True)

    def open_store(self) -> Store:
        """A connection of its own. Raises Failure."""
        try:
            return Store.open(self.store_path)
        except StoreError as error:
            raise unavailable(error) from error

    def open_hypervisor(self, map_budget: int = DEFAULT_MAP_BUDGET) -> Hypervisor:
        """Grants and event channels, as the backend's domain; `map_budget`: MiB of guests' memory. Raises Failure."""
        pages = map_budget * PAGES_PER_MIB
        if self.name.kind == "xen":
            return _open_xen(self.backend, pages)
        try:
            from cpp_ring import HostError, LocalHypervisor
        except ImportError as error:
            raise Failure(ExitCode.NOT_INSTALLED, str(error)) from error
        try:
            return LocalHypervisor(str(self.directory), self.backend, pages)
        except HostError as error:
            raise unavailable(error) from error

    def domain_directory(self, domid: int) -> Path:
        """Where the locks of a domain's emulator are."""
        return self.directory / f"dom{domid}"

    def store_gone(self, error: StoreError) -> str:
        """What the loss of the store means, in a line."""
        way = (
            "what xenstored knew is lost with it, so the host has to be started again"
            if self.name.kind == "xen"
            else f"the domains of {self.name} have ended with it"
        )
        return f"the store is gone ({error}); {way}"


def open_machine(name: HypervisorName) -> Machine:
    """The machine of that name; the broker of a local one is started on demand. Raises Failure."""
    if name.kind == "xen":
        return _xen_machine(name)
    from emulator.local import MachineError, ensure_broker, socket_path

    try:
        directory = ensure_broker(name.machine)
        return Machine(name, directory, socket_path(directory, 0, "xenstored"))
    except MachineError as error:
        raise unavailable(error) from error


def _xen_machine(name: HypervisorName) -> Machine:
    try:
        with xen.open_store() as store:
            backend = xen.own_domid(store)
    except StoreError as error:
        failure = unavailable(error)
        if failure.code is ExitCode.NO_HYPERVISOR:
            failure = Failure(failure.code, f"{error}; `--hypervisor local` needs no Xen and no root")
        raise failure from error
    path = xen.store_path()
    assert path is not None  # it was opened a moment ago
    # Not where a login keeps its files: root's shell and the system's services must see the same locks.
    locks = Path(os.environ.get("VIRTIO_DM_RUNTIME_DIR") or "/run/virtio-dm") / "xen"
    return Machine(name, locks, path, backend)


def _open_xen(backend: int, map_budget: int) -> Hypervisor:
    try:
        from cpp_ring import XenHypervisor
    except (ImportError, AttributeError) as error:
        raise Failure(
            ExitCode.NOT_INSTALLED,
            "this build has no Xen support; `apt-get install libxen-dev pkg-config`, then install virtio-dm again",
        ) from error
    for name in ("evtchn", "gntdev"):
        path = xen.DEVICES / name
        if not path.exists():
            raise Failure(ExitCode.NO_HYPERVISOR, f"there is no {path}; `modprobe xen-{name}` brings it")
        if not os.access(path, os.R_OK | os.W_OK):
            raise Failure(ExitCode.NOT_PERMITTED, f"this user may not use {path}; run as root")
    return XenHypervisor(backend, map_budget)


def is_there(store: Store, domid: int) -> bool:
    """Whether the domain exists, as far as we may know: only dom0 is told. Raises StoreError."""
    try:
        return store.is_domain_introduced(domid)
    except StoreError as error:
        if error.errno == errno.EACCES:
            return True
        raise


def require_backend(machine: Machine, store: Store, frontend: int) -> None:
    """Raises Failure unless a domain that is another one, and is there, serves the frontend."""
    if machine.backend == frontend:
        raise Failure(ExitCode.USAGE, f"domain {frontend} cannot serve itself: --backend is another one")
    if machine.elsewhere and machine.backend != 0 and not is_there(store, machine.backend):
        raise Failure(ExitCode.NO_DOMAIN, f"no domain {machine.backend} on {machine.name}, which --backend names")


def require_domain(machine: Machine, store: Store, domid: int) -> None:
    """Raises Failure unless the domain is there."""
    if not 0 < domid <= LAST_DOMID:
        raise Failure(ExitCode.NO_DOMAIN, f"domain {domid} cannot have devices; domids are 1 to {LAST_DOMID}")
    if not is_there(store, domid):
        way = (
            "`xl list` shows those there are"
            if machine.name.kind == "xen"
            else f"`virtio-dm local {machine.name.machine} --create {domid}` makes one"
        )
        raise Failure(ExitCode.NO_DOMAIN, f"no domain {domid} on {machine.name}; {way}")


def unavailable(error: OSError) -> Failure:
    """What a hypervisor's refusal means for a command."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return Failure(ExitCode.NOT_PERMITTED, str(error))
    return Failure(ExitCode.USAGE if error.errno == errno.EINVAL else ExitCode.NO_HYPERVISOR, str(error))
