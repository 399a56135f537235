"""What ends `scripts/xen-rig`, and with which exit code."""

from typing import Final

SCRIPT_TIMEOUT: Final = 124
"""Exit code, as of timeout(1): the script was still running when its time was over."""
RIG_FAILED: Final = 125
"""Exit code: the rig could not be built or started."""
DOM0_DIED: Final = 126
"""Exit code: Xen or dom0 crashed, hung or stopped before the script had ended."""


class RigError(Exception):
    """One line for a person: what is wrong and what to do next."""

    def __init__(self, message: str, code: int = RIG_FAILED) -> None:
        super().__init__(message)
        self.code = code
