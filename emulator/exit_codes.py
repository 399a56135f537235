"""How every command of virtio-dm ends: the table of exit codes, and the exception that carries one."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of `virtio-dm`; each has one meaning in every command."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    BAD_DEVICE = 3
    MISSING_FILE = 4
    NO_DOMAIN = 5
    ALREADY_RUNNING = 6
    NO_HYPERVISOR = 7
    NO_DEVICE = 8
    REFUSED = 9
    NOT_PERMITTED = 10
    STUCK = 11
    FORCED = 12
    TIMED_OUT = 13
    HYPERVISOR_LOST = 14
    NOT_INSTALLED = 15
    UNFIT_MACHINE = 16
    PROCESS_FAILED = 17
    HUNG_UP = 129
    INTERRUPTED = 130
    TERMINATED = 143


MEANINGS: dict[ExitCode, str] = {
    ExitCode.OK: "done; for run, supervise and local: stopped as asked, or the domain is gone",
    ExitCode.INTERNAL: "a fault of virtio-dm itself; the traceback is on standard error",
    ExitCode.USAGE: "wrong command, option or argument, or key of the configuration file",
    ExitCode.BAD_DEVICE: "no such device model, or an option of it that is unknown, missing or wrong",
    ExitCode.MISSING_FILE: "what was named is missing, unreadable, unfit or in use: a file, a socket, an interface",
    ExitCode.NO_DOMAIN: "no such domain",
    ExitCode.ALREADY_RUNNING: "another process does this job already (second emulator of a domain, second supervisor)",
    ExitCode.NO_HYPERVISOR: "the hypervisor is not available",
    ExitCode.NO_DEVICE: "the domain has no such device",
    ExitCode.REFUSED: "the device refused (attach, update), or could not be made (run --device)",
    ExitCode.NOT_PERMITTED: "this user may not do that",
    ExitCode.STUCK: "stopped, but a device model did not return in time and was abandoned",
    ExitCode.FORCED: "stopped at once by a second signal",
    ExitCode.TIMED_OUT: "the emulator or the guest did not answer in time",
    ExitCode.HYPERVISOR_LOST: "the hypervisor or its store went away",
    ExitCode.NOT_INSTALLED: "a part of virtio-dm is not built or not installed",
    ExitCode.UNFIT_MACHINE: "this machine lacks what the command needs (bench: a second CPU)",
    ExitCode.PROCESS_FAILED: "a process that the command started ended too early, or did not start (bench)",
    ExitCode.HUNG_UP: "ended by SIGHUP",
    ExitCode.INTERRUPTED: "ended by Ctrl-C (SIGINT)",
    ExitCode.TERMINATED: "ended by SIGTERM; run, supervise and local end with 0 then",
}


def table() -> str:
    """The exit codes as lines of text, for `--help`."""
    return "\n".join(f"{code.value:>4}  {meaning}" for code, meaning in MEANINGS.items())


class Failure(Exception):
    """Ends a command: one line for a person, which says what to do next, and an exit code."""

    def __init__(self, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
