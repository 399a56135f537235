"""`virtio-dm run`."""

from __future__ import annotations

from pathlib import Path

import click

from cpp_ring.store import StoreError
from emulator.commands import options
from emulator.config_file import RunFile, read
from emulator.exit_codes import ExitCode, Failure
from emulator.machine import DEFAULT_MAP_BUDGET, LAST_DOMID, HypervisorName, parse_hypervisor


@click.command("run", epilog="The table of exit codes is in `virtio-dm --help`.")
@click.option("--domid", type=click.IntRange(1, LAST_DOMID), help="The domain to serve.  [required, here or in FILE]")
@options.hypervisor
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A TOML file with the same, and [[device]]s.",
)
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="SPEC",
    help="A device for as long as this process runs: MODEL,KEY=VALUE,... where MODEL is a name of `virtio-dm devices` "
    "or FILE.py:CLASS. A comma inside a value is written twice. May be repeated; besides these, devices that are "
    "attached to the domain are served.",
)
@options.poll_us(
    "How long a device spins for more work before it sleeps, in microseconds; 0 sleeps at once, always never sleeps "
    "and wants a core for each device."
)
@options.map_budget("How much of the domain's memory its devices together may have mapped at a time, in MiB.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="What is written to standard error.",
)
def command(
    domid: int | None,
    hypervisor: HypervisorName | None,
    config: Path | None,
    devices: tuple[str, ...],
    poll_us: float | None,
    map_budget: int | None,
    log_level: str,
) -> None:
    """Serve the devices of one domain.

    The process runs in the foreground until the domain ends, or SIGTERM or SIGINT asks it to finish what it has in hand
    and stop; a second signal stops it at once.
    """
    file = read(config) if config else RunFile()
    domain = domid if domid is not None else file.domid
    if domain is None:
        raise click.UsageError("no domain; say which one to serve with --domid N")
    specs = [*file.devices, *map(options.parse_spec, devices)]
    # What costs time to import comes after what can be wrong with the words.
    from emulator import log, models
    from emulator.process import RunConfig, end_process, run

    machine = hypervisor or file.hypervisor or parse_hypervisor(None)
    try:
        checked = tuple(map(models.validate, specs))
    except models.InUseFailure as failure:
        raise options.with_user(failure, machine) from failure
    settings = RunConfig(
        domid=domain,
        hypervisor=machine,
        devices=checked,
        spin_us=poll_us if poll_us is not None else file.spin_us,
        map_budget=map_budget or file.map_budget or DEFAULT_MAP_BUDGET,
    )
    log.configure(log_level)
    try:
        code = run(settings)
    except (Failure, StoreError):
        raise
    except Exception:
        log.report_crash()
        code = ExitCode.INTERNAL
    end_process(code)
