"""`virtio-dm demo`."""

from __future__ import annotations

import click

from emulator.exit_codes import ExitCode


@click.command("demo")
@click.option(
    "--races",
    type=click.IntRange(1, 100_000_000),
    default=100_000,
    show_default=True,
    help="Writes to the config space that are read back at once.",
)
def command(races: int) -> ExitCode:
    """Show the whole thing at work.

    Makes a disk image of real files and a local machine, and lets an emulator for each of two domains serve a disk,
    network cards and random numbers to guest processes. Checks what the guests see: the content of the disk, also
    after its emulator was killed; frames between the domains; config space that is never stale; a live resize. Takes
    less than half a minute and needs neither Xen nor root. Nothing is left behind.
    """
    from rich.console import Console

    from emulator.demo.image import find_mke2fs
    from emulator.demo.interrupts import Interrupts
    from emulator.demo.play import play
    from emulator.demo.screen import Screen
    from emulator.demo.stage import open_stage
    from emulator.demo.steps import STEPS, Demo

    mke2fs = find_mke2fs()
    screen = Screen(Console())
    screen.heading("virtio-dm demo: two domains, an emulator each, guests that use their devices")
    with Interrupts() as interrupts, open_stage(interrupts) as stage:
        demo = Demo(stage, mke2fs, screen.detail, races)
        try:
            results = play(demo, STEPS, screen)
        except KeyboardInterrupt:
            screen.interrupted()
            raise
        if not results[-1].ok:
            screen.failure(results[-1].text, stage.last_words())
    if demo.latency.count:
        screen.histogram("Round trips of config reads, guest to emulator and back", demo.latency)
    screen.summary(results)
    return ExitCode.OK if all(result.ok for result in results) else ExitCode.INTERNAL
