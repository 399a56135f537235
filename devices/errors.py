"""What can go wrong with a device, by whose fault it is."""

from __future__ import annotations


class RequestError(Exception):
    """The driver made a request that no driver would make.

    Raised by a handler (or by `Request` itself, when the buffers are too short). The device needs a reset then and
    its error code is `request`; any other exception of a handler is a failure of the model.
    """


class OptionError(ValueError):
    """A device option is unknown, missing, or of the wrong type or value. One line, for the person who wrote it."""


class DeviceError(Exception):
    """The host cannot provide what the device needs (no such file, locked by another process). One line."""
