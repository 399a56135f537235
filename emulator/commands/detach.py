"""`virtio-dm detach`."""

from __future__ import annotations

import click

from emulator.commands import options
from emulator.machine import HypervisorName


@click.command("detach")
@options.domid
@options.devid
@click.option("--no-wait", is_flag=True, help="Return without waiting for the guest and the emulator to let go.")
@options.backend
@options.hypervisor
def command(domid: int, devid: int, no_wait: bool, backend: int | None, hypervisor: HypervisorName | None) -> None:
    """Take a device away from a domain.

    The guest is asked to let go of it; after 5 seconds it is taken away without being asked again.
    """
    from emulator import toolstack

    machine = options.machine_of(hypervisor, backend)
    with machine.open_store() as store:
        toolstack.detach(machine, store, domid, devid, wait=not no_wait)
