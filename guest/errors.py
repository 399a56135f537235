"""Errors of the driver. Errors of the channel itself (`cpp_ring.ChannelError` and its kinds) pass through unchanged."""


class DriverError(Exception):
    """Base of what a device, its backend or its toolstack can do to a driver."""


class NoSuchDevice(DriverError):
    """The store has no such device, or what it says of it cannot be used."""


class ConnectionFailed(DriverError):
    """The backend did not connect: it closed the device, said nonsense in the store, or let the deadline pass."""


class DeviceGone(DriverError):
    """The device was unplugged; there is nothing to reconnect to."""


class BadAnswer(DriverError):
    """The device answered what no device may answer."""


class ConfigRefused(DriverError):
    """A read or write of config space that the device refused; nothing changed."""


class InitialisationFailed(DriverError):
    """Probe went wrong: wrong kind of device, features or status not taken, a queue missing."""


class DiedDuringProbe(DriverError):
    """The device died, or asked for the next reset, while it was being initialised."""


class NeedsReset(DriverError):
    """DEVICE_NEEDS_RESET is set and resetting did not help."""


class RequestTimeout(DriverError):
    """The device holds a request for longer than the caller waits; its buffers stay the device's until a reset."""


class RequestFailed(DriverError):
    """The device completed a request with an error."""


class Unsupported(DriverError):
    """The device does not offer what was asked for."""
