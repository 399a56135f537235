"""Device models that nobody but the tests on Xen knows, driven there by stock drivers of the guest's kernel."""

from devices import Device, Queue, Request


class Alphabet(Device):
    """To a driver an entropy source. Its entropy is the alphabet."""

    name = "alphabet"
    device_id = 4
    queues = (Queue("requestq", size=16),)

    def requestq(self, request: Request) -> None:
        text = b"abcdefghijklmnopqrstuvwxyz" * (request.writable_bytes // 26 + 1)
        request.write(text[: request.writable_bytes])
