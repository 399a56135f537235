"""`virtio-dm supervise`."""

from __future__ import annotations

import click

from emulator.commands import options
from emulator.exit_codes import ExitCode
from emulator.machine import HypervisorName, parse_hypervisor
from emulator.poll import format_poll


@click.command("supervise")
@options.hypervisor
@options.poll_us("Passed on to each emulator.")
@options.map_budget("Passed on to each emulator.")
def command(hypervisor: HypervisorName | None, poll_us: float | None, map_budget: int | None) -> ExitCode:
    """Run one emulator for each domain that has devices.

    An emulator that ends is started again, after 50 ms at first and 10 s at most. SIGTERM or SIGINT stops all of them
    in order; a second signal kills them.
    """
    from emulator import log
    from emulator.supervisor import supervise

    log.configure()
    arguments: list[str] = []
    if poll_us is not None:
        arguments += ["--poll-us", format_poll(poll_us)]
    if map_budget is not None:
        arguments += ["--map-budget", str(map_budget)]
    return supervise(hypervisor or parse_hypervisor(None), tuple(arguments))
