"""Options and arguments that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cpp_ring.store import StoreError
from emulator.exit_codes import ExitCode, Failure
from emulator.machine import (
    DEFAULT_MAP_BUDGET,
    LARGEST_MAP_BUDGET,
    LAST_DOMID,
    HypervisorName,
    Machine,
    open_machine,
    parse_hypervisor,
)
from emulator.poll import parse_poll
from emulator.spec import Spec, SpecError, parse

if TYPE_CHECKING:
    from emulator.models import InUseFailure

Function = TypeVar("Function", bound=Callable[..., Any])


def converted(convert: Callable[[str], object]) -> Callable[[click.Context, click.Parameter, str | None], object]:
    """A callback for an option: its text by way of `convert`, whose ValueError is a wrong argument."""

    def callback(ctx: click.Context, param: click.Parameter, value: str | None) -> object:
        try:
            return None if value is None else convert(value)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from error

    return callback


def hypervisor(function: Function) -> Function:
    """`--hypervisor`, handed over as `hypervisor: HypervisorName | None`."""
    return click.option(
        "--hypervisor",
        metavar="xen|local[:NAME]",
        callback=converted(parse_hypervisor),
        envvar="VIRTIO_DM_HYPERVISOR",
        show_envvar=True,
        help="Where the domains are: Xen, or the local machine of that NAME, whose broker is started on demand.",
        show_default="xen if this is a Xen host, else local:default",
    )(function)


def backend(function: Function) -> Function:
    """`--backend`, handed over as `backend: int | None`."""
    return click.option(
        "--backend",
        type=click.IntRange(0, LAST_DOMID),
        metavar="DOMID",
        help="The domain whose emulator serves the device, if it is a driver domain.",
        show_default="this one",
    )(function)


def poll_us(text: str) -> Callable[[Function], Function]:
    """`--poll-us`, handed over as `poll_us: float | None`. `text` is its help."""
    return click.option(
        "--poll-us",
        metavar="N|always",
        callback=converted(parse_poll),
        help=text,
        show_default="50, and while the guest is busy as long as it takes to be woken 16 times, up to 2000",
    )


def map_budget(text: str) -> Callable[[Function], Function]:
    """`--map-budget`, handed over as `map_budget: int | None`. `text` is its help."""
    return click.option(
        "--map-budget",
        type=click.IntRange(1, LARGEST_MAP_BUDGET),
        metavar="MIB",
        help=text,
        show_default=str(DEFAULT_MAP_BUDGET),
    )


def domid(function: Function) -> Function:
    """The argument DOMID."""
    return click.argument("domid", type=click.IntRange(1, LAST_DOMID), metavar="DOMID")(function)


def devid(function: Function) -> Function:
    """The argument DEVID."""
    return click.argument("devid", type=click.IntRange(0, 65535), metavar="DEVID")(function)


def machine_of(name: HypervisorName | None, backend: int | None = None) -> Machine:
    """The machine of `--hypervisor`, its default included, and of `--backend`. Raises Failure."""
    return open_machine(name or parse_hypervisor(None)).of_backend(backend)


def parse_spec(text: str) -> Spec:
    """A specification from the command line. Raises Failure BAD_DEVICE."""
    try:
        return parse(text)
    except SpecError as error:
        raise Failure(ExitCode.BAD_DEVICE, str(error)) from error


def with_user(failure: InUseFailure, name: HypervisorName | None) -> Failure:
    """The same, naming the device that uses the file, where a machine that runs has it in its store."""
    from emulator import local, toolstack

    name = name or parse_hypervisor(None)
    if name.kind == "local" and not local.running(name.machine):
        return failure  # to look must not start its broker
    try:
        machine = open_machine(name)
        with machine.open_store() as store:
            user = toolstack.user_of(machine, store, failure.path)
    except (Failure, StoreError):
        return failure
    if user is None:
        return failure
    text = f"{failure.what} {failure.path} is in use by device {user.devid} of domain {user.domid}"
    way = f"`virtio-dm detach {user.domid} {user.devid}`, or the end of process {user.pid}, takes it from there"
    return Failure(failure.code, f"{text}; {way}")
