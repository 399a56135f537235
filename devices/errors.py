"""What can go wrong with a device, by whose fault it is."""

from __future__ import annotations

from pathlib import Path


class RequestError(Exception):
    """The driver made a request that no driver would make.

    Raised by a handler (or by `Request` itself, when the buffers are too short). The device needs a reset then and
    its error code is `request`; any other exception of a handler is a failure of the model.
    """


class OptionError(ValueError):
    """A device option is unknown, missing, or of the wrong type or value. One line, for the person who wrote it."""


class DeviceError(Exception):
    """The host cannot provide what the device needs (no such file, locked by another process). One line."""


class InUse(DeviceError):
    """What the device needs is another's: `path` is an image or a socket that somebody has open."""

    def __init__(self, what: str, path: Path) -> None:
        super().__init__(f"{what} {path} is in use already; stop what uses it, or name another")
        self.what = what
        self.path = path


class NotPermitted(DeviceError):
    """This user may not have what the device needs. One line, which says what to do."""
