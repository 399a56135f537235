"""`virtio-dm attach`."""

from __future__ import annotations

import click

from emulator.commands import options
from emulator.machine import HypervisorName, require_backend, require_domain


@click.command("attach")
@options.domid
@click.argument("spec", metavar="SPEC")
@click.option("--id", "devid", type=click.IntRange(0, 65535), help="Its number.", show_default="the lowest free one")
@click.option("--no-wait", is_flag=True, help="Return without waiting for the emulator to build the device.")
@options.backend
@options.hypervisor
def command(
    domid: int, spec: str, devid: int | None, no_wait: bool, backend: int | None, hypervisor: HypervisorName | None
) -> None:
    """Add a device to a domain.

    SPEC is MODEL,KEY=VALUE,... as for `run --device`. The number of the new device is printed. If an emulator serves
    the domain the device is there at once, otherwise as soon as one does.
    """
    from emulator import models, toolstack

    parsed = options.parse_spec(spec)
    if backend is None:  # of another domain its own emulator says whether it can be made
        try:
            parsed = models.validate(parsed)
        except models.InUseFailure as failure:
            raise options.with_user(failure, hypervisor) from failure
    machine = options.machine_of(hypervisor, backend)
    with machine.open_store() as store:
        require_backend(machine, store, domid)
        require_domain(machine, store, domid)
        number = toolstack.attach(store, machine.backend, domid, parsed, devid)
        if not (no_wait or toolstack.await_ready(machine, store, domid, number)):
            click.echo(f"no emulator serves domain {domid} yet: `virtio-dm run --domid {domid}` starts one", err=True)
        click.echo(number)
