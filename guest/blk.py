"""Block device driver (virtio 1.3 section 5.2)."""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Final

from guest.arena import PAGE, SECTOR, Buffer
from guest.device import VirtioDevice, bits
from guest.errors import BadAnswer, InitialisationFailed, RequestFailed, Unsupported
from guest.queue import Chain

SIZE_MAX: Final = 1
SEG_MAX: Final = 2
GEOMETRY: Final = 4
RO: Final = 5
BLK_SIZE: Final = 6
FLUSH: Final = 9
TOPOLOGY: Final = 10
CONFIG_WCE: Final = 11
MQ: Final = 12
DISCARD: Final = 13
WRITE_ZEROES: Final = 14

MAX_TRANSFER: Final = 128 * 1024
"""Bytes of data in one request of `read` and `write`."""

_HEADER = struct.Struct("<IIQ")
_SEGMENT = struct.Struct("<QII")
_UNMAP: Final = 1
_ID_SIZE: Final = 20
_NO_STATUS: Final = 0xFF
_NO_LIMIT: Final = 0xFFFFFFFF
_NO_ROOM: Final = "no room in the arena: other requests hold it, finish them first"


class Operation(IntEnum):
    """Request types of section 5.2.6."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    DISCARD = 11
    WRITE_ZEROES = 13


class Status(IntEnum):
    """What a request ended with."""

    OK = 0
    IOERR = 1
    UNSUPP = 2


@dataclass(frozen=True, slots=True)
class Field:
    """A field of config space: `feature` must be negotiated to read it (None: always)."""

    offset: int
    size: int
    feature: int | None


FIELDS: Final[dict[str, Field]] = {
    "capacity": Field(0, 8, None),
    "size_max": Field(8, 4, SIZE_MAX),
    "seg_max": Field(12, 4, SEG_MAX),
    "cylinders": Field(16, 2, GEOMETRY),
    "heads": Field(18, 1, GEOMETRY),
    "sectors": Field(19, 1, GEOMETRY),
    "blk_size": Field(20, 4, BLK_SIZE),
    "physical_block_exp": Field(24, 1, TOPOLOGY),
    "alignment_offset": Field(25, 1, TOPOLOGY),
    "min_io_size": Field(26, 2, TOPOLOGY),
    "opt_io_size": Field(28, 4, TOPOLOGY),
    "writeback": Field(32, 1, CONFIG_WCE),
    "num_queues": Field(34, 2, MQ),
    "max_discard_sectors": Field(36, 4, DISCARD),
    "max_discard_seg": Field(40, 4, DISCARD),
    "discard_sector_alignment": Field(44, 4, DISCARD),
    "max_write_zeroes_sectors": Field(48, 4, WRITE_ZEROES),
    "max_write_zeroes_seg": Field(52, 4, WRITE_ZEROES),
    "write_zeroes_may_unmap": Field(56, 1, WRITE_ZEROES),
}


@dataclass(slots=True, eq=False)
class BlockRequest:
    """A request the device has, or had: hand it to `BlockDevice.finish`."""

    operation: int
    sector: int
    chain: Chain
    control: Buffer
    data: Buffer | None
    queue: int


class BlockDevice(VirtioDevice):
    """Sectors are 512 bytes. Up to `queue_size` requests in flight by `submit` and `finish`; the other calls are made
    of these two. A write that completed is in the device; after `flush` it survives the host's power.
    """

    device_id: ClassVar[int | None] = 2
    known_features: ClassVar[int] = bits(
        SIZE_MAX, SEG_MAX, GEOMETRY, RO, BLK_SIZE, FLUSH, TOPOLOGY, CONFIG_WCE, MQ, DISCARD, WRITE_ZEROES
    )
    arena_pages: ClassVar[int] = 512

    config: dict[str, int]
    """The fields of config space that the negotiated features bring, by name."""

    def start(self) -> None:
        self.read_config()
        self.find_queues(min(self.config.get("num_queues", 1), len(self.transport.queues), os.cpu_count() or 1) or 1)
        if self.transfer_sectors == 0:
            raise InitialisationFailed(f"size_max {self.config['size_max']}: a sector does not fit into a request")

    def read_config(self) -> None:
        """Reads every field anew, one by one as Linux does."""
        self.config = {
            name: self.config_number(field.offset, field.size)
            for name, field in FIELDS.items()
            if field.feature is None or self.has(field.feature)
        }

    @property
    def capacity(self) -> int:
        """Sectors, as last read."""
        return self.config["capacity"]

    @property
    def read_only(self) -> bool:
        return self.has(RO)

    def wait_config_change(self, timeout: float) -> bool:
        """As VirtioDevice.wait_config_change; `config` and `capacity` are up to date afterwards."""
        changed = super().wait_config_change(timeout)
        if changed:
            self.read_config()
        return changed

    # ---- one request ----

    def submit(
        self, operation: int, sector: int = 0, *, data: bytes | memoryview = b"", size: int = 0, queue: int = 0
    ) -> BlockRequest | None:
        """Sends one request: `data` for the device to read, or `size` bytes for it to write.

        None while the arena has no room: finish a request first. Nothing is checked: the device is asked as told.
        Raises ValueError for one that can never fit.
        """
        length = len(data) or size
        arena = self.transport.arena
        assert arena is not None
        if length > arena.pages * PAGE - SECTOR:
            raise ValueError(f"{length} bytes in one request; the arena has {arena.pages * PAGE}")
        control = arena.allocate(_HEADER.size + 1)
        if control is None:
            return None
        buffer = arena.allocate(length, PAGE if length >= PAGE else SECTOR) if length else None
        if length and buffer is None:
            arena.free(control)
            return None
        _HEADER.pack_into(control.memory, 0, operation, 0, sector)
        control.memory[_HEADER.size] = _NO_STATUS
        readable = [control.piece(0, _HEADER.size)]
        writable = [control.piece(_HEADER.size, 1)]
        if buffer is not None and data:
            buffer.memory[:] = data
            readable += self._pieces(buffer)
        elif buffer is not None:
            writable[:0] = self._pieces(buffer)
        chain = Chain(readable, writable, (control,) if buffer is None else (control, buffer))
        try:
            self.queues[queue].submit(chain)
        except BaseException:
            self.queues[queue].free(chain)
            raise
        return BlockRequest(operation, sector, chain, control, buffer, queue)

    def finish(self, request: BlockRequest, timeout: float | None = None) -> bytes:
        """Waits for a request and frees it; the data of a reading one. Raises RequestFailed, Unsupported (the device's
        IOERR and UNSUPP), BadAnswer, and what `wait` raises; then the request is abandoned.
        """
        queue = self.queues[request.queue]
        self.complete(queue, request.chain, timeout)
        try:
            return self._result(request)
        finally:
            queue.free(request.chain)

    def abandon(self, request: BlockRequest) -> None:
        """Nobody will finish this request."""
        self.queues[request.queue].abandon(request.chain)

    def _result(self, request: BlockRequest) -> bytes:
        what = f"{_name(request.operation)} at sector {request.sector}"
        status = request.control.memory[_HEADER.size]
        if status == Status.UNSUPP:
            raise Unsupported(f"{what}: the device does not support it")
        if status == Status.IOERR:
            raise RequestFailed(f"{what}: I/O error of the device")
        if status != Status.OK:
            raise BadAnswer(f"{what}: status {status}")
        if request.chain.readable[1:] or request.data is None:
            return b""
        written, size = request.chain.written, len(request.data.memory)
        if written != size + 1:
            raise BadAnswer(f"{what}: the device wrote {written} bytes of {size + 1}")
        return bytes(request.data.memory)

    def _pieces(self, buffer: Buffer) -> list[tuple[int, int]]:
        largest = self.config.get("size_max", 0) or len(buffer.memory)
        return [
            buffer.piece(start, min(largest, len(buffer.memory) - start))
            for start in range(0, len(buffer.memory), largest)
        ]

    # ---- everything else ----

    def read(self, sector: int, count: int) -> bytes:
        """`count` sectors, by as many requests in flight as there is room for."""
        return b"".join(self.stream(sector, count))

    def stream(self, sector: int, count: int) -> Iterator[bytes]:
        """The same in pieces, in order, for more than is wanted in memory."""
        return self._pipeline(
            lambda start, length: self.submit(Operation.IN, start, size=length * SECTOR),
            sector,
            count,
            self.transfer_sectors,
        )

    def write(self, sector: int, data: bytes | memoryview) -> None:
        """Whole sectors. ValueError: `data` is not a multiple of 512 bytes."""
        if len(data) % SECTOR:
            raise ValueError(f"{len(data)} bytes are not a number of sectors of {SECTOR} bytes")
        view = memoryview(data)

        def submit(start: int, length: int) -> BlockRequest | None:
            at = (start - sector) * SECTOR
            return self.submit(Operation.OUT, start, data=view[at : at + length * SECTOR])

        self._run(submit, sector, len(data) // SECTOR, self.transfer_sectors)

    def flush(self) -> None:
        """Everything written so far is on stable storage afterwards. A device without FLUSH writes through."""
        if self.has(FLUSH):
            self._single(self.submit(Operation.FLUSH))

    def discard(self, sector: int, count: int) -> None:
        """Raises Unsupported without VIRTIO_BLK_F_DISCARD."""
        self.require(DISCARD, "discard")
        self._run(self._segment(Operation.DISCARD, 0), sector, count, self.config["max_discard_sectors"] or _NO_LIMIT)

    def write_zeroes(self, sector: int, count: int, unmap: bool = False) -> None:
        """Raises Unsupported without VIRTIO_BLK_F_WRITE_ZEROES."""
        self.require(WRITE_ZEROES, "write zeroes")
        submit = self._segment(Operation.WRITE_ZEROES, _UNMAP if unmap else 0)
        self._run(submit, sector, count, self.config["max_write_zeroes_sectors"] or _NO_LIMIT)

    def get_id(self) -> str:
        """The device's serial, at most 20 bytes."""
        answer = self._single(self.submit(Operation.GET_ID, size=_ID_SIZE))
        return answer.split(b"\0", 1)[0].decode("ascii", "replace")

    def set_writeback(self, on: bool) -> None:
        """Switches the write cache. Raises Unsupported without VIRTIO_BLK_F_CONFIG_WCE."""
        self.require(CONFIG_WCE, "switch for its write cache")
        field = FIELDS["writeback"]
        self.config["writeback"] = self.config_write(field.offset, bytes([on]))[0]

    @property
    def transfer_sectors(self) -> int:
        """Sectors of the largest request of `read` and `write`: what the device's limits, queue and arena allow."""
        largest = MAX_TRANSFER
        if size_max := self.config.get("size_max", 0):
            # Linux takes one segment where the device says nothing.
            segments = min(self.config.get("seg_max", 0) or 1, self.queues[0].ring.size - 2)
            largest = min(largest, size_max * max(1, segments))
        return largest // SECTOR

    def _segment(self, operation: Operation, flags: int) -> Callable[[int, int], BlockRequest | None]:
        return lambda start, length: self.submit(operation, data=_SEGMENT.pack(start, length, flags))

    def _single(self, request: BlockRequest | None) -> bytes:
        if request is None:
            raise RequestFailed(_NO_ROOM)
        return self.finish(request)

    def _run(self, submit: Callable[[int, int], BlockRequest | None], sector: int, count: int, largest: int) -> None:
        for _ in self._pipeline(submit, sector, count, largest):
            pass

    def _pipeline(
        self, submit: Callable[[int, int], BlockRequest | None], sector: int, count: int, largest: int
    ) -> Iterator[bytes]:
        """Runs `submit(start, length)` over the range in steps of `largest` sectors, results in order."""
        window: deque[BlockRequest] = deque()
        try:
            for start in range(sector, sector + count, largest):
                length = min(largest, sector + count - start)
                while len(window) >= self.queue_size or (request := submit(start, length)) is None:
                    if not window:
                        raise RequestFailed(_NO_ROOM)
                    yield self.finish(window.popleft())
                window.append(request)
            while window:
                yield self.finish(window.popleft())
        finally:
            for request in window:
                self.abandon(request)


def _name(operation: int) -> str:
    try:
        return Operation(operation).name
    except ValueError:
        return f"request {operation}"
