"""The local hypervisor: a broker process that keeps Xen's rules between ordinary processes (docs/local.md).

Grants, event channels and xenstore for the domains of a "machine", on any Linux without Xen or privilege.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.local.control import Control
from emulator.local.errors import MachineError
from emulator.local.machine import (
    create_domain,
    destroy_domain,
    domains,
    ensure_broker,
    machine_directory,
    running,
    socket_path,
    stop,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulator.local.broker import Broker

__all__ = [
    "Broker",
    "Control",
    "MachineError",
    "create_domain",
    "destroy_domain",
    "domains",
    "ensure_broker",
    "machine_directory",
    "main",
    "running",
    "socket_path",
    "stop",
]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a broker until it is stopped; `python -m emulator.local`. Returns an exit code."""
    from emulator.local.process import main as run

    return run(argv)


def __getattr__(name: str) -> object:
    if name == "Broker":  # who only asks for a machine need not load its broker
        from emulator.local.broker import Broker

        return Broker
    raise AttributeError(f"module 'emulator.local' has no attribute {name!r}")
