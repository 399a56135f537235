"""Device models that nobody but the tests on Xen knows, driven there by stock drivers of the guest's kernel."""

from devices import Device, Hold, Queue, Request
from devices.net import Net


class Alphabet(Device):
    """To a driver an entropy source. Its entropy is the alphabet."""

    name = "alphabet"
    device_id = 4
    queues = (Queue("requestq", size=16),)

    def requestq(self, request: Request) -> None:
        text = b"abcdefghijklmnopqrstuvwxyz" * (request.writable_bytes // 26 + 1)
        request.write(text[: request.writable_bytes])


class Deaf(Net):
    """A network card that never answers a control command."""

    def controlq(self, request: Request) -> Hold:  # type: ignore[override]
        return Hold.HELD
