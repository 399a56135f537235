"""`virtio-dm update`."""

from __future__ import annotations

import click

from emulator.commands import options
from emulator.exit_codes import ExitCode, Failure
from emulator.machine import HypervisorName
from emulator.spec import SpecError, parse_pairs


@click.command("update")
@options.domid
@options.devid
@click.argument("changes", metavar="[KEY=VALUE]...", nargs=-1)
@options.backend
@options.hypervisor
def command(
    domid: int, devid: int, changes: tuple[str, ...], backend: int | None, hypervisor: HypervisorName | None
) -> None:
    """Change options of a device while it is in use.

    Which ones can be changed is shown by `virtio-dm devices MODEL`. Without KEY=VALUE the device looks anew at what it
    stands on: a blk device takes the size that its file has now.
    """
    from emulator import models, toolstack

    try:
        pairs = dict(parse_pairs(changes))
    except SpecError as error:
        raise Failure(ExitCode.BAD_DEVICE, str(error)) from error
    machine = options.machine_of(hypervisor, backend)
    with machine.open_store() as store:
        # A driver domain has models of its own, and what it says of them is not to be run here.
        if not machine.elsewhere and (spec := toolstack.spec_of(machine, store, domid, devid)):
            models.validate_update(spec, pairs)
        toolstack.update(machine, store, domid, devid, pairs)
