"""The command line: a group whose commands are imported when they are called, and how failures reach the shell."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from cpp_ring.store import StoreError
from emulator.exit_codes import ExitCode, Failure, table

# name -> (module, what it does); the module's `command` is a click command.
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("emulator.commands.run", "Serve the devices of one domain."),
    "supervise": ("emulator.commands.supervise", "Run one emulator for each domain that has devices."),
    "attach": ("emulator.commands.attach", "Add a device to a domain."),
    "detach": ("emulator.commands.detach", "Take a device away from a domain."),
    "update": ("emulator.commands.update", "Change options of a device while it is in use."),
    "list": ("emulator.commands.list", "List the devices of all domains."),
    "devices": ("emulator.commands.devices", "List the device models, or describe one."),
    "local": ("emulator.commands.local", "Run a local machine: domains without Xen."),
    "doctor": ("emulator.commands.doctor", "Show what this machine offers and what is missing."),
    "demo": ("emulator.demo", "Show the whole thing at work."),
    "bench": ("emulator.bench", "Measure round trips."),
}


class LazyGroup(click.Group):
    """A group that imports a command when it is called; listing them imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = COMMANDS[cmd_name][0]
        try:
            command = importlib.import_module(module).command
        except ModuleNotFoundError as error:
            raise Failure(ExitCode.NOT_INSTALLED, f"{cmd_name} is not installed: {error}") from error
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(f"\nExit codes:\n{table()}\n")


@click.group(cls=LazyGroup, context_settings={"auto_envvar_prefix": "VIRTIO_DM", "help_option_names": ["-h", "--help"]})
@click.version_option(None, "-V", "--version", package_name="virtio-dm", message="%(prog)s %(version)s")
def group() -> None:
    """Virtio devices for Xen guests over grants and event channels, one process per domain.

    Options can also be given in the environment: VIRTIO_DM_HYPERVISOR, VIRTIO_DM_RUN_POLL_US and so on.
    """


def run(arguments: Sequence[str]) -> NoReturn:
    """Runs one command line and ends the process."""
    try:
        code = _invoke(arguments)
    except Failure as failure:
        code = _say(failure.code, failure.message)
    except click.Abort as abort:
        code = _interrupted(abort.__cause__)  # click's own form of a KeyboardInterrupt
    except click.ClickException as error:
        code = ExitCode(error.exit_code) if error.exit_code == ExitCode.USAGE else ExitCode.INTERNAL
        _say(code, _one_line(error))
    except KeyboardInterrupt as interrupt:
        code = _interrupted(interrupt)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of our output has left
        code = ExitCode.OK
    except StoreError as error:
        code = _say(ExitCode.HYPERVISOR_LOST, str(error))
    sys.exit(code)


def _invoke(arguments: Sequence[str]) -> ExitCode:
    result = group.main(list(arguments), prog_name="virtio-dm", standalone_mode=False)
    sys.stdout.flush()
    return ExitCode(result) if isinstance(result, int) else ExitCode.OK


def _interrupted(cause: BaseException | None) -> ExitCode:
    """As a shell counts the end by a signal; that of a KeyboardInterrupt is SIGINT unless it says another."""
    return ExitCode(128 + getattr(cause, "number", signal.SIGINT))


def _one_line(error: click.ClickException) -> str:
    """What is wrong and where to look, without click's three lines around it."""
    text = " ".join(error.format_message().split()).rstrip(".")
    text = text[:1].lower() + text[1:]
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"{text}; `{context.command_path if context else 'virtio-dm'} --help` shows how"


def _say(code: ExitCode, message: str) -> ExitCode:
    click.echo(f"virtio-dm: {message}", err=True)
    return code
