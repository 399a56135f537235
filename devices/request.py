"""One descriptor chain, as a device model sees it."""

from __future__ import annotations

from enum import Enum

from devices.errors import RequestError

_ZEROES = bytes(65536)


class Hold(Enum):
    """What a handler returns to complete its request later."""

    HELD = "held"


class Request:
    """A request of the driver: bytes to read, then memory to write (virtio 1.3 section 2.6).

    queue           index of the virtqueue it came from
    head            the engine's number for it, by which it is completed
    readable        the device-readable part, a private copy the guest cannot change any more
    writable        the device-writable part, guest memory, in order: one-dimensional memoryviews of bytes. Valid until
                    completion. Write only: the guest may change it at any time
    writable_bytes  its size in bytes

    Reading and writing go through two cursors that start at 0. Everything before the write cursor counts as written
    and is what the driver is told as `used.len`, so a model never leaves a hole there.
    """

    __slots__ = ("_offset", "_read", "_view", "head", "queue", "readable", "writable", "writable_bytes", "written")

    def __init__(self, queue: int, head: int, readable: bytes, writable: list[memoryview]) -> None:
        self.queue = queue
        self.head = head
        self.readable = readable
        self.writable = writable
        self.writable_bytes = len(writable[0]) if len(writable) == 1 else sum(map(len, writable))
        self.written = 0
        self._read = 0
        self._view = 0
        self._offset = 0

    def __repr__(self) -> str:
        sizes = f"{len(self.readable)} readable, {self.writable_bytes} writable"
        return f"Request(queue={self.queue}, head={self.head}, {sizes})"

    @property
    def remaining(self) -> int:
        """Bytes of `readable` after the read cursor."""
        return len(self.readable) - self._read

    @property
    def room(self) -> int:
        """Bytes of the writable part after the write cursor."""
        return self.writable_bytes - self.written

    def read(self, size: int) -> bytes:
        """The next `size` device-readable bytes. Raises RequestError if the driver gave fewer."""
        start = self._read
        end = start + size
        if end > len(self.readable):
            raise RequestError(f"{size} bytes to be read at {start}, the request has {len(self.readable)}")
        self._read = end
        return self.readable[start:end]

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Writes `data` at the write cursor. Raises RequestError, with nothing written, if the buffers end before."""
        size = len(data)
        start = self._offset
        end = start + size
        if self._view < len(self.writable) and end <= len(view := self.writable[self._view]):
            view[start:end] = data  # as it nearly always is
            self._offset = end
            self.written += size
            return
        done = 0
        for view in self.reserve(size):
            step = len(view)
            view[:] = data[done : done + step]
            done += step

    def reserve(self, size: int) -> list[memoryview]:
        """The next `size` writable bytes, for `os.preadv` and its like; the cursor moves past them.

        The caller fills all of them, with zeroes where it has no data (`zero`). Raises RequestError, with the cursor
        where it was, if the driver's buffers end before.
        """
        written = self.written
        if size > self.writable_bytes - written:
            raise RequestError(f"{size} bytes to be written at {written}, the request takes {self.writable_bytes}")
        self.written = written + size
        if not written and size and size == len(view := self.writable[0]):
            self._view = 1  # as it is for a driver that gives the data a buffer of its own
            return [view]
        views: list[memoryview] = []
        while size:
            view = self.writable[self._view]
            start = self._offset
            left = len(view) - start
            if left > size:
                self._offset = start + size
                views.append(view[start : start + size])
                break
            if left:
                views.append(view[start:] if start else view)
                size -= left
            self._view += 1
            self._offset = 0
        return views

    def write_last(self, data: bytes) -> None:
        """Writes `data` at the very end of the writable part and zeroes from the cursor up to it.

        For headers that trail the data, as virtio-blk's status byte. The zeroes keep `used.len` true and leave nothing
        stale in what the driver believes was written. Raises RequestError if there is no room for `data`.
        """
        gap = self.writable_bytes - self.written - len(data)
        if gap > 0:
            zero(self.reserve(gap))
        self.write(data)

    def hold(self) -> Hold:
        """For `return request.hold()` in a handler: the model completes the request later, by `backend.complete`."""
        return Hold.HELD


def zero(views: list[memoryview]) -> None:
    """Fills guest memory with zeroes."""
    for view in views:
        for start in range(0, len(view), len(_ZEROES)):
            part = view[start : start + len(_ZEROES)]
            part[:] = _ZEROES[: len(part)]
