"""Where the bench runs on Xen: this domain serves, one domU that is there already drives."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cpp_ring.store import StoreError
from emulator import backend_nodes
from emulator.bench.run import machine_line
from emulator.bench.site import Site
from emulator.exit_codes import ExitCode, Failure
from emulator.guest_process import GuestFailed, GuestProcess
from emulator.machine import open_machine, parse_hypervisor, require_domain


class XenSite(Site):
    """One domU; what is attached to it is taken away by `detach`."""

    attached: list[tuple[int, int]]

    def attach(self, domid: int, spec: str) -> int:
        devid = super().attach(domid, spec)
        self.attached.append((domid, devid))
        return devid

    def detach(self) -> None:
        """Removes every device that was attached; its emulator has ended. Raises StoreError."""
        while self.attached:
            backend_nodes.remove(self.store, self.machine.backend, *self.attached.pop())

    def first_guest(self, domid: int) -> GuestProcess:
        """The guest, and it is where it should be. Raises Failure, which says what is wrong with the command."""
        command = " ".join(self.guest_command or ())
        try:
            guest = self.guest(domid)
        except FileNotFoundError as error:
            raise Failure(ExitCode.MISSING_FILE, f"there is no command {error.filename!r} for --guest") from error
        except OSError as error:
            raise Failure(ExitCode.NOT_PERMITTED, f"cannot start {command!r}: {error.strerror}") from error
        except GuestFailed as error:
            raise Failure(
                ExitCode.TIMED_OUT,
                f"no guest: {error}; try --guest by hand, it must start `python3 -m guest agent` in domain {domid}",
            ) from error
        found = guest.request("about")["domid"]
        if found != domid:
            guest.close()
            raise Failure(ExitCode.USAGE, f"--guest starts a guest in domain {found}, --domid says {domid}")
        return guest


def xen_machine_line(site: XenSite, about: dict[str, Any]) -> dict[str, str | int]:
    """What the figures of a run between two domains depend on; `about`: what the guest says of itself."""
    # CPUs of each domain's own.
    machine = machine_line("xen") | {"backend-cpu": site.server_cpu, "frontend-cpu": site.client_cpu}
    if about["guest"] is not None:
        machine["guest"] = about["guest"]
    return machine | {"guest-kernel": about["kernel"]}


@contextlib.contextmanager
def open_xen_site(domid: int, guest_command: Sequence[str], server_cpu: int) -> Iterator[XenSite]:
    """The machine we are on; leaves no node of the bench behind. Raises Failure, StoreError."""
    machine = open_machine(parse_hypervisor("xen"))
    machine.open_hypervisor()  # says what is missing, before anything is begun
    with machine.open_store() as store, tempfile.TemporaryDirectory(prefix="virtio-dm-") as name:
        require_domain(machine, store, domid)
        site = XenSite(machine, store, Path(name), server_cpu, 0, guest_command)
        site.attached = []
        try:
            yield site
        finally:
            with contextlib.suppress(StoreError):  # the domain is gone, and its nodes with it
                site.detach()
