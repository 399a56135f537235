"""What one device of the backend waits for: the states of `xenbus_device`, finer than those the frontend sees."""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

from emulator.store_paths import State


class Phase(Enum):
    """What a device waits for."""

    BUILDING = auto()  # its thread, to build the model
    FAILED = auto()  # another spec: the model could not be built
    WAITING = auto()  # the frontend, to offer its pages
    CONNECTING = auto()  # its thread, to map them
    CONNECTED = auto()
    CLOSING = auto()  # the frontend, to follow into Closed
    DISCONNECTING = auto()  # its thread, to unmap everything
    CLOSED = auto()  # the frontend, to start afresh
    FINISHING = auto()  # its thread, to close the model
    GONE = auto()


STATES: Final = {
    Phase.FAILED: State.CLOSED,
    Phase.WAITING: State.INIT_WAIT,
    Phase.CONNECTED: State.CONNECTED,
    Phase.CLOSING: State.CLOSING,
    Phase.CLOSED: State.CLOSED,
}
"""What the frontend is told in a phase that waits for it."""
