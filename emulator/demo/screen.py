"""What the demo looks like: a bar for the step that runs if this is a terminal, a line for each that ended, a table."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn
from rich.table import Table

from cpp_ring import LatencyRecorder
from emulator.bench.rows import human
from emulator.demo.histogram import bar, buckets

BAR_WIDTH: Final = 20
TITLE_WIDTH: Final = 46


@dataclass(frozen=True, slots=True)
class Result:
    """How a step ended: what it showed, or why it failed."""

    name: str
    text: str
    ok: bool
    seconds: float


class Screen:
    """Writes to `console`; everything fits 80 columns."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def heading(self, text: str) -> None:
        self._console.print(f"[bold]{escape(text)}[/]", highlight=False)

    @contextlib.contextmanager
    def running(self, title: str) -> Iterator[Callable[[float], None]]:
        """Shows on a terminal how far a step is, as it is told in shares of 1."""
        columns = (
            SpinnerColumn(),
            TextColumn(f"[bold]{escape(title):<{TITLE_WIDTH}}[/]"),
            BarColumn(bar_width=BAR_WIDTH),
            TaskProgressColumn(),
        )
        with Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal) as bars:
            task = bars.add_task(title, total=1.0)
            yield lambda share: bars.update(task, completed=share)

    def ended(self, title: str, ok: bool, seconds: float) -> None:
        """The line of a step that ended."""
        verdict = "[green]ok[/]    " if ok else "[bold red]FAILED[/]"
        self._console.print(f"{verdict} {seconds:5.1f} s  {escape(title)}", highlight=False)

    def interrupted(self) -> None:
        self._console.print("interrupted: stopping everything", highlight=False)

    def detail(self, text: str) -> None:
        """A line about the step that runs."""
        self._console.print(f"[dim]    {escape(text)}[/]", highlight=False)

    def failure(self, reason: str, log: Sequence[str]) -> None:
        """Why the demo ended early, and the last lines of what its processes logged."""
        self._console.print(f"[bold red]{escape(reason)}[/]", highlight=False)
        if log:
            self._console.print("the last lines of the log:", highlight=False)
        for line in log:
            self._console.print(f"  {escape(line)}", style="dim", highlight=False, soft_wrap=True)

    def histogram(self, title: str, recorder: LatencyRecorder) -> None:
        plain = not self._console.encoding.startswith("utf")
        rows = buckets(recorder)
        most = max((row.count for row in rows), default=0)
        table = Table(title=escape(title), title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for justify in ("right", "right", "left", "left"):
            table.add_column(justify=justify, no_wrap=True)
        table.show_header = False
        above = 0
        for row in rows:
            label = f"> {human(above, 'ns')}" if row.upper is None else f"<= {human(row.upper, 'ns')}"
            drawn = f"[cyan]{bar(row.count, most, 40, plain=plain)}[/]"
            table.add_row(label, f"{row.count:,}", drawn, f"[bold]{row.mark}[/]")
            above = row.upper or above
        self._console.print()
        self._console.print(table, highlight=False)

    def summary(self, results: Sequence[Result]) -> None:
        table = Table(title="What was shown", title_justify="left")
        table.add_column("step", no_wrap=True)
        table.add_column("shown")
        table.add_column("result", no_wrap=True)
        table.add_column("time", justify="right", no_wrap=True)
        for result in results:
            verdict = "[green]ok[/]" if result.ok else "[bold red]FAILED[/]"
            table.add_row(result.name, escape(result.text), verdict, f"{result.seconds:.1f} s")
        self._console.print()
        self._console.print(table, highlight=False)
