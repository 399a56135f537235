"""`virtio-dm local`."""

from __future__ import annotations

import click

from emulator.exit_codes import ExitCode, Failure
from emulator.machine import LAST_DOMID, unavailable


@click.command("local")
@click.argument("name", default="default")
@click.option(
    "--domains", type=click.IntRange(0, LAST_DOMID), default=8, show_default=True, help="Domains besides dom0 at first."
)
@click.option("--create", type=click.IntRange(1, LAST_DOMID), metavar="DOMID", help="Add a domain to it.")
@click.option("--destroy", type=click.IntRange(1, LAST_DOMID), metavar="DOMID", help="Let a domain of it die.")
@click.option("--list", "show", is_flag=True, help="Print its domids.")
@click.option("--stop", is_flag=True, help="End it, and with it all of its domains.")
def command(name: str, domains: int, create: int | None, destroy: int | None, show: bool, stop: bool) -> ExitCode:
    """Run a local machine: domains without Xen.

    Without an option the broker of the machine NAME runs in the foreground until SIGTERM or SIGINT. The other commands
    start one in the background when they need it; the options act on a machine that runs.
    """
    from emulator import local

    if [create is not None, destroy is not None, show, stop].count(True) > 1:
        raise click.UsageError("one of --create, --destroy, --list and --stop at a time")
    try:
        if create is not None:
            local.create_domain(name, create)
        elif destroy is not None:
            local.destroy_domain(name, destroy)
        elif show:
            for domid in local.domains(name):
                click.echo(domid)
        elif stop:
            local.stop(name)
        else:
            return ExitCode(local.main([name, "--domains", str(domains)]))
    except local.MachineError as error:
        raise local_failure(error, create or destroy) from error
    return ExitCode.OK


def local_failure(error: OSError, domid: int | None) -> Failure:
    import errno

    if domid is not None and error.errno in (errno.EEXIST, errno.ENOENT) and "no local machine" not in str(error):
        return Failure(ExitCode.NO_DOMAIN, str(error))
    return unavailable(error)
