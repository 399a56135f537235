"""`virtio-dm bench`: runs it, prints the table, writes the files."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from emulator.bench import kernel_run, run, xen_run
from emulator.bench.errors import EXPECTED, failure
from emulator.bench.rows import LIMIT, Row, human, targets
from emulator.bench.run import Result
from emulator.commands import options
from emulator.demo.interrupts import Interrupts
from emulator.exit_codes import ExitCode, Failure
from emulator.machine import LAST_DOMID, HypervisorName, parse_hypervisor


def _writable(_: click.Context, __: click.Parameter, value: Path | None) -> Path | None:
    if value is not None:
        directory = value.resolve().parent
        if not directory.is_dir():
            raise click.BadParameter(f"there is no directory {str(directory)!r} to write it to")
        if not os.access(directory, os.W_OK):
            raise click.BadParameter(f"this user may not write to {str(directory)!r}")
    return value


def _picture(context: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and value.suffix not in PICTURES:
        raise click.BadParameter(f"{value.name!r} ends in none of {', '.join(PICTURES)}")
    return _writable(context, parameter, value)


def _words(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no command: {error}") from error
    if not words:
        raise ValueError("the command is empty")
    return words


LOCAL_COUNT = 200_000
PICTURES = (".svg", ".png", ".pdf")
_FILE = click.Path(path_type=Path, dir_okay=False, writable=True)


@click.command("bench")
@options.hypervisor
@click.option("--domid", type=click.IntRange(1, LAST_DOMID), help="On Xen: the domain of the frontend half.")
@click.option(
    "--guest",
    metavar="COMMAND",
    callback=options.converted(_words),
    help="On Xen: starts `python3 -m guest agent` in that domain, with its standard input and output here; such as "
    "'ssh domu python3 -m guest agent'.",
)
@click.option(
    "--module",
    metavar="FILE",
    help="On Xen: measure stock drivers over this virtio_msg_xen.ko, a file in that domain, and Xen's own drivers.",
)
@options.poll_us("With --module: how long the emulator of its disk and its network card stays awake, as of `run`.")
@click.option("--json", "json_path", type=_FILE, callback=_writable, metavar="FILE", help="Write the rows as JSON.")
@click.option(
    "--plot", "plot_path", type=_FILE, callback=_picture, metavar="FILE.svg", help="Write the latency CDF of each row."
)
@click.option(
    "--count",
    type=click.IntRange(100, 100_000_000),
    help="Samples of each fast row; slow rows take fewer.",
    show_default=f"{LOCAL_COUNT}, on Xen {xen_run.COUNT}, with --module {kernel_run.COUNT}",
)
def command(
    hypervisor: HypervisorName | None,
    domid: int | None,
    guest: list[str] | None,
    module: str | None,
    poll_us: float | None,
    json_path: Path | None,
    plot_path: Path | None,
    count: int | None,
) -> ExitCode:
    """Measure round trips of the config ring, the machine's limit, and what one would use instead.

    The two sides of each row run in two processes on two cores (two threads of one, where it is the only one), on Xen
    in two domains; most rows take turns in ten rounds. Nothing else should run meanwhile. Figures are nanoseconds from
    request to answer, but for memory and streams. Without Xen it needs nothing: it makes a local machine of its own.
    """
    measure = _measure((hypervisor or parse_hypervisor(None)).kind, domid, guest, module, poll_us, count)
    if plot_path is not None:
        _require_matplotlib()
    console = Console()
    try:
        with Interrupts(), _progress(console) as progress:
            result = measure(progress)
    except EXPECTED as error:
        raise failure(error) from error
    print_table(console, result.rows, result.machine)
    if json_path is not None:
        limit = result.rows[LIMIT]
        rows = [row.as_json(limit) for row in result.rows.values()]
        with _written(json_path):
            json_path.write_text(json.dumps({"machine": result.machine, "rows": rows}, indent=1) + "\n")
    if plot_path is not None:
        from emulator.bench.plot import plot

        with _written(plot_path):
            plot(result.rows.values(), plot_path)
    return ExitCode.OK


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise Failure(ExitCode.MISSING_FILE, f"cannot write {path}: {why}") from error


def _measure(
    kind: str,
    domid: int | None,
    guest: list[str] | None,
    module: str | None,
    poll_us: float | None,
    count: int | None,
) -> Callable[[Callable[[float, str], None]], Result]:
    """What is to be run. Raises UsageError."""
    if poll_us is not None and module is None:
        raise click.UsageError("--poll-us goes with --module; the other rows say themselves who is awake")
    if kind == "local":
        if domid is not None or guest is not None or module is not None:
            text = "--domid, --guest and --module are for --hypervisor xen; a local bench makes its own domains"
            raise click.UsageError(text)
        return lambda progress: run.run(count or LOCAL_COUNT, progress)
    if domid is None:
        raise click.UsageError(
            "on Xen --domid N says in which domain the frontend half is; --hypervisor local needs none"
        )
    if guest is None:
        raise click.UsageError(
            "on Xen --guest COMMAND starts the frontend half, such as --guest 'ssh domu python3 -m guest agent'"
        )
    if module is not None:
        return lambda progress: kernel_run.run(domid, guest, module, poll_us, count or kernel_run.COUNT, progress)
    return lambda progress: xen_run.run(domid, guest, count or xen_run.COUNT, progress)


def print_table(console: Console, rows: dict[str, Row], machine: dict[str, str | int]) -> None:
    """The rows, and under them what they say about the targets."""
    table = Table(title=", ".join(f"{key} {value}" for key, value in machine.items()), title_justify="left")
    table.add_column("row")
    for name in ("p50", "p99", "p99.9", "min", "x limit", "count"):
        table.add_column(name, justify="right")
    limit = rows[LIMIT]
    for row in rows.values():
        ratio = row.ratio(limit)
        figures = (row.percentile(50), row.percentile(99), row.percentile(99.9), row.recorder.min)
        table.add_row(
            row.name,
            *(human(figure, row.unit) for figure in figures),
            "" if ratio is None else f"{ratio:.2f}" if ratio < 100 else f"{ratio:.0f}",
            str(row.recorder.count),
        )
    console.print(table)
    for target in targets(rows):
        sign = ">=" if target.at_least else "<="
        verdict = "[green]reached[/]" if target.met else "[red]missed[/]"
        console.print(f"{target.text}: {target.measured:.2f} (target {sign} {target.bound:g}) {verdict}")


@contextlib.contextmanager
def _progress(console: Console) -> Iterator[Callable[[float, str], None]]:
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("bench", total=1.0)

        def show(share: float, what: str) -> None:
            bar.update(task, completed=share, description=what)

        yield show


def _require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise Failure(
            ExitCode.NOT_INSTALLED, "--plot needs matplotlib; `pip install 'virtio-dm[plot]'` installs it"
        ) from error
