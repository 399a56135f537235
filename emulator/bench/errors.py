"""What can go wrong with a run of the bench, and how the command ends then."""

from __future__ import annotations

from cpp_ring import HostError
from cpp_ring.store import StoreError
from emulator.exit_codes import ExitCode, Failure
from emulator.guest_process import GuestFailed, GuestTimedOut
from emulator.local import MachineError
from emulator.machine import unavailable


class ProcessFailed(Exception):
    """A process that the bench needs and started did not do its part. One line."""


EXPECTED = (ProcessFailed, GuestFailed, OSError, EOFError)
"""What a run may raise besides Failure; anything else is a fault of the bench."""


def failure(error: BaseException) -> Failure:
    """How the command ends after one of `EXPECTED`."""
    text = f"the bench failed: {error}"
    match error:
        case StoreError() | HostError():
            return Failure(ExitCode.HYPERVISOR_LOST, text)
        case MachineError():
            return Failure(unavailable(error).code, text)
        case GuestTimedOut() | TimeoutError():
            return Failure(ExitCode.TIMED_OUT, text)
        case ProcessFailed() | GuestFailed() | ConnectionError() | EOFError():
            return Failure(ExitCode.PROCESS_FAILED, text)
        case PermissionError():
            return Failure(ExitCode.NOT_PERMITTED, text)
        case _:
            return Failure(ExitCode.MISSING_FILE, text)
