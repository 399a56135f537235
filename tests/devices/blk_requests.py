"""A virtio-blk driver for tests: requests as bytes, written out from virtio 1.3 section 5.2.6."""

import struct
from collections.abc import Sequence
from pathlib import Path

from devices.blk import Blk
from devices.testing import Buffers, MockDriver

IN, OUT, FLUSH, GET_ID, GET_LIFETIME, DISCARD, WRITE_ZEROES, SECURE_ERASE = 0, 1, 4, 8, 10, 11, 13, 14
OK, IOERR, UNSUPP = 0, 1, 2


def header(kind: int, sector: int = 0) -> bytes:
    return struct.pack("<IIQ", kind, 0, sector)


def segment(sector: int, count: int, flags: int = 0) -> bytes:
    return struct.pack("<QII", sector, count, flags)


class BlkDriver(MockDriver):
    """Opens and starts the device; each request returns its status, reads also the data."""

    def __init__(self, device: Blk, features: int | None = None) -> None:
        super().__init__(device)
        self.blk = device
        device.open()
        self.start(features)

    def read(self, sector: int, size: int, split: Sequence[int] = ()) -> tuple[int, bytes]:
        answer = self.send(0, header(IN, sector), [*split, size - sum(split), 1])
        assert len(answer) == size + 1
        return answer[-1], answer[:-1]

    def write(self, sector: int, data: bytes, queue: int = 0) -> int:
        return self._status(self.submit(queue, header(OUT, sector) + data, [1]))

    def command(self, kind: int, data: bytes = b"", sector: int = 0) -> int:
        return self._status(self.submit(0, header(kind, sector) + data, [1]))

    def flush(self) -> int:
        return self.command(FLUSH)

    @staticmethod
    def _status(buffers: Buffers) -> int:
        assert buffers.done
        assert len(buffers.written) == 1
        return buffers.written[0]


def make_image(path: Path, sectors: int = 64) -> bytes:
    """A file whose sectors are all different; returns its contents."""
    data = b"".join(struct.pack("<Q", number) * 64 for number in range(1, sectors + 1))
    path.write_bytes(data)
    return data
