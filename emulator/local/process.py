"""The broker as a process."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Sequence

from cpp_ring.machine import DEFAULT_MACHINE
from emulator.exit_codes import ExitCode
from emulator.local.broker import Broker
from emulator.local.errors import MachineError
from emulator.local.limits import LAST_DOMID
from emulator.local.machine import machine_directory, start_lock

EXIT_CODES = {errno.EBUSY: ExitCode.ALREADY_RUNNING, errno.EACCES: ExitCode.NOT_PERMITTED, errno.EINVAL: ExitCode.USAGE}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the broker of the machine named in `argv` until SIGTERM, SIGINT or `stop`; returns an exit code."""
    parser = argparse.ArgumentParser(prog="virtio-dm local", description="Runs the broker of a local machine.")
    parser.add_argument("name", nargs="?", default=DEFAULT_MACHINE, help="Name of the machine (default: %(default)s).")
    parser.add_argument("--domains", type=int, default=8, help="Domains besides dom0 at start (default: %(default)s).")
    parser.add_argument("--daemon-fd", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if not 0 <= options.domains <= LAST_DOMID:
        parser.error(f"argument --domains: {options.domains} is not a number from 0 to {LAST_DOMID}")
    if options.daemon_fd is not None and os.fork():
        os._exit(0)  # who started it need not wait for the broker's end
    try:
        with _started(options.name, options.domains, options.daemon_fd) as broker:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: broker.stop())
            broker.run()
    except MachineError as error:
        print(f"virtio-dm local: {error}", file=sys.stderr)
        return EXIT_CODES.get(error.errno or 0, ExitCode.NO_HYPERVISOR)
    return ExitCode.OK


def _started(name: str, domains: int, daemon_fd: int | None) -> Broker:
    """A broker that can be connected to. The starter of a daemon holds the start lock itself."""
    directory = machine_directory(name)
    if daemon_fd is not None:
        broker = Broker(directory, range(1, domains + 1))
        os.write(daemon_fd, b"ready\n")
        os.close(daemon_fd)
        return broker
    lock = start_lock(directory)
    try:
        broker = Broker(directory, range(1, domains + 1))
    finally:
        os.close(lock)
    print(f"machine {name} in {directory}: dom0 and {domains} domains; Ctrl-C ends it", file=sys.stderr, flush=True)
    return broker
