"""`virtio-dm list`."""

from __future__ import annotations

import click

from emulator.commands import options
from emulator.machine import HypervisorName
from emulator.text_table import lines


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array with one object for each device.")
@options.backend
@options.hypervisor
def command(as_json: bool, backend: int | None, hypervisor: HypervisorName | None) -> None:
    """List the devices of all domains.

    BACKEND and FRONTEND are the xenbus states of the two ends; PID is the emulator that serves the domain.
    """
    from emulator import toolstack

    machine = options.machine_of(hypervisor, backend)
    with machine.open_store() as store:
        entries = toolstack.entries(machine, store)
    if as_json:
        import json

        click.echo(json.dumps([entry.as_dict() for entry in entries], indent=2))
        return
    rows = [
        (e.domid, e.devid, e.model, e.backend_state, e.frontend_state, e.pid or "-", e.spec, e.error or "")
        for e in entries
    ]
    for line in lines(("DOMID", "DEVID", "MODEL", "BACKEND", "FRONTEND", "PID", "SPEC", "ERROR"), rows):
        click.echo(line)
