"""The service manager's notification socket (sd_notify(3)), without its library."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(message: str) -> None:
    """Sends e.g. "READY=1" to the service manager; nothing happens, and nothing fails, when there is none."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    target = "\0" + address[1:] if address[0] == "@" else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)
        sender.sendto(message.encode(), target)


def watchdog_period() -> float | None:
    """Seconds between two "WATCHDOG=1": half of what the service manager allows; None when it expects none."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 2e6 if microseconds.isdecimal() and int(microseconds) > 0 else None
