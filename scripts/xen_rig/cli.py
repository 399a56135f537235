"""The command line of scripts/xen-rig."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Final, Literal

from scripts.xen_rig import artefacts, booted, cache, order, parts, ramdisk
from scripts.xen_rig.errors import RIG_FAILED, RigError
from scripts.xen_rig.host import say
from scripts.xen_rig.machine import Disks, dom0_kind

INTERRUPTED: Final = 130
PIPE_CLOSED: Final = 128 + signal.SIGPIPE
CPUS: Final = 2
"""Of the machine, for what is no part of the tests."""
ALL_CPUS: Final = sorted({CPUS, *parts.CPUS.values()})
EXIT_CODES: Final = (
    "exit codes: the script's own; 124 it ran longer than --timeout; 125 the rig could not be built or started; "
    "126 Xen or dom0 died"
)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(sys.argv[1:] if argv is None else argv)
    signal.signal(signal.SIGTERM, _terminated)
    signal.signal(signal.SIGHUP, _terminated)
    try:
        dom0_kind()  # what is wrong there is said before anything is built
        code: int = arguments.command(arguments)
    except RigError as error:
        say(str(error))
        return error.code
    except BrokenPipeError:
        return PIPE_CLOSED  # nobody reads: nothing to say either
    except OSError as error:
        say(f"{error}: the cache is in {cache.directory()}, see VIRTIO_DM_RIG_CACHE")
        return RIG_FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Of `test`, whatever is not the rig's own is pytest's, as `arguments`."""
    top = argparse.ArgumentParser(
        prog="xen-rig", description="A real Xen in an emulated machine.", epilog=EXIT_CODES, allow_abbrev=False
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, epilog=EXIT_CODES, allow_abbrev=False)

    build = add("build", "Makes everything that the other commands need, which they do by themselves too.")
    build.set_defaults(command=_build)
    build.add_argument("--refresh", action="store_true", help="ask the archives for newer packages first")
    text = "only the saved state of a machine with so many CPUs, and what it needs"
    build.add_argument("--cpus", type=int, choices=ALL_CPUS, help=text)
    run = add("run", "Boots, runs a script of this machine in dom0, exits with its exit code.")
    run.set_defaults(command=_run)
    run.add_argument("script", type=Path, metavar="SCRIPT")
    run.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="arguments of the script")
    shell = add("shell", "Boots and gives a root shell in dom0; its end is the machine's end.")
    shell.set_defaults(command=_shell)
    tests = add("test", "Boots and runs tests/xen with pytest in dom0; other arguments are pytest's.")
    tests.set_defaults(command=_test)
    text = "only these, in one machine: %(choices)s"
    tests.add_argument("--part", choices=parts.CPUS, metavar="PART", help=text)
    for each in (run, shell, tests):
        each.add_argument("--share", type=Path, metavar="DIR", help="a directory that dom0 sees as /rig/share, live")
        each.add_argument("--cold", action="store_true", help="boot, instead of beginning with the saved state")
    for each in (run, tests):
        text = "of the script; default: %(default)s"
        patience = 1800.0 if each is tests else 600.0
        each.add_argument("--timeout", type=_seconds, default=patience, metavar="S", help=text)
        each.add_argument("--verbose", action="store_true", help="Xen's and dom0's console on standard error")
    arguments, rest = top.parse_known_args(argv)
    if arguments.command is _test:
        arguments.arguments = rest
        arguments.given = argv[1:]
    elif rest:
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def _build(arguments: argparse.Namespace) -> int:
    start = time.monotonic()
    if arguments.cpus:
        made = artefacts.make(refresh=arguments.refresh)
        with _run_directory() as directory:
            disks = _disks(made, directory, directory / "share", arguments.cpus)
            booted.state(cache.directory(), disks, arguments.cpus)
        return 0
    made = _make_all(refresh=arguments.refresh)
    say(f"ready in {time.monotonic() - start:.1f} s: {made.versions}; kept in {cache.directory()}")
    return 0


def _make_all(*, refresh: bool = False) -> artefacts.Artefacts:
    """Also the saved states, side by side: a machine that boots is mostly busy with one thing at a time."""
    made = artefacts.make(refresh=refresh)
    with contextlib.ExitStack() as stack:
        machines = {}
        for cpus in ALL_CPUS:
            directory = stack.enter_context(_run_directory())
            machines[cpus] = _disks(made, directory, directory / "share", cpus)
        place = cache.directory()
        missing = [cpus for cpus, disks in machines.items() if not booted.is_saved(place, disks, cpus)]
        children = [stack.enter_context(parts.running(["build", "--cpus", str(cpus)])) for cpus in missing[1:]]
        for cpus in missing[:1]:
            booted.state(place, machines[cpus], cpus)
        if any(child.wait() for child in children):
            raise RigError("a state was not saved: see above")
    return made


def _run(arguments: argparse.Namespace) -> int:
    return _boot(arguments, "run", lambda host: order.script(host, arguments.script, arguments.arguments))


def _test(arguments: argparse.Namespace) -> int:
    if arguments.part:
        command = order.tests(arguments.part, arguments.arguments)
        return _boot(arguments, "run", lambda _: command, parts.CPUS[arguments.part])
    if not arguments.cold:
        _make_all()  # not each machine for itself
    return parts.run(arguments.given)


def _shell(arguments: argparse.Namespace) -> int:
    if not sys.stdin.isatty():
        raise RigError("shell needs a terminal; to run commands: scripts/xen-rig run SCRIPT")
    say("leave with exit")
    return _boot(arguments, "shell", lambda _: "")


def _boot(
    arguments: argparse.Namespace, verb: Literal["run", "shell"], command: order.Command, cpus: int = CPUS
) -> int:
    share: Path | None = arguments.share
    if share is not None and not share.is_dir():
        raise RigError(f"{share} is no directory: make it first")
    with _run_directory() as directory:
        order.write(directory / "host", command(directory / "host"), cpus)
        made = artefacts.make()
        disks = _disks(made, directory, share.resolve() if share else directory / "share", cpus)
        saved = None if arguments.cold else booted.state(cache.directory(), disks, cpus)
        verbose = getattr(arguments, "verbose", False)
        with booted.session(disks, cpus, verb, directory / "console.log", saved=saved, verbose=verbose) as session:
            return session.wait(getattr(arguments, "timeout", None))


@contextlib.contextmanager
def _run_directory() -> Iterator[Path]:
    """What is only for one run."""
    with cache.scratch(cache.directory()) as directory:
        for part in ("host", "share"):
            (directory / part).mkdir()
        yield directory


def _disks(made: artefacts.Artefacts, directory: Path, share: Path, cpus: int) -> Disks:
    (directory / "ramdisk").write_bytes(ramdisk.content(made.root / "boot.cpio", cpus))
    return Disks(
        xen=made.root / "xen",
        vmlinux=made.root / "vmlinux",
        ramdisk=directory / "ramdisk",
        root=made.root / "root.ext4",
        libraries=made.libraries,
        site=made.site,
        host=directory / "host",
        share=share,
    )


def _seconds(text: str) -> float:
    seconds = float(text)
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"{text} is no time: give seconds above 0")
    return seconds


def _terminated(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)
