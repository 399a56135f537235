"""A virtqueue as a device model declares it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Queue:
    """One virtqueue of a device type.

    name     as the specification calls it, for people and logs
    size     the most descriptors the driver may choose, a power of two from 1 to 32768
    feature  the bit that must be negotiated for the queue to exist; None: it always does
    handler  the method that serves the queue, by default the one of the queue's name. Numbered queues share one:
             Queue("requestq2", handler="requestq"); the handler finds the queue's index in `request.queue`

    If the device has the method, it is called with each `Request`, in order. If not, the queue is pulled: the model
    takes buffers with `backend.pop(index)` when it has something to put in them, and gives them back with
    `backend.complete(request)`; its method `<handler>_ready(index)`, if there is one, is called when the driver has
    made buffers available.
    """

    name: str
    size: int = 256
    feature: int | None = None
    handler: str = ""

    def __post_init__(self) -> None:
        if not (0 < self.size <= 32768 and self.size & (self.size - 1) == 0):
            raise ValueError(f"queue {self.name}: size {self.size} is not a power of two from 1 to 32768")
        if not self.handler:
            object.__setattr__(self, "handler", self.name)
