"""virtio-blk: a disk backed by a file or a block device of the host (virtio 1.3 section 5.2)."""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from devices.config_space import ConfigSpace, array, le16, le32, le64, u8
from devices.device import Device, on_write
from devices.disk_image import DiskImage
from devices.errors import DeviceError, RequestError
from devices.features import FeatureTable, has, mask
from devices.options import Size
from devices.queue import Queue
from devices.request import Request, zero

# Feature bits, section 5.2.3.
F_SIZE_MAX = 1
F_SEG_MAX = 2
F_GEOMETRY = 4
F_RO = 5
F_BLK_SIZE = 6
F_FLUSH = 9
F_TOPOLOGY = 10
F_CONFIG_WCE = 11
F_MQ = 12
F_DISCARD = 13
F_WRITE_ZEROES = 14
F_LIFETIME = 15
F_SECURE_ERASE = 16
F_ZONED = 17

# Request types and status values, section 5.2.6.
T_IN = 0
T_OUT = 1
T_FLUSH = 4
T_GET_ID = 8
T_DISCARD = 11
T_WRITE_ZEROES = 13
S_OK = 0
S_IOERR = 1
S_UNSUPP = 2
_STATUS_BYTES = tuple(bytes((status,)) for status in (S_OK, S_IOERR, S_UNSUPP))

SECTOR = 512
ID_BYTES = 20
FLAG_UNMAP = 1
QUEUE_SIZE = 256
MAX_QUEUES = 64

# The work of one request is bounded: a hole of 1 GiB a segment; zeroes, which may have to be written, 32 MiB.
MAX_DISCARD_SECTORS = 1 << 21
MAX_DISCARD_SEGMENTS = 16
MAX_WRITE_ZEROES_SECTORS = 1 << 16
MAX_WRITE_ZEROES_SEGMENTS = 1

_PHYSICAL_BLOCK = 4096
_HEADER = struct.Struct("<IIQ")  # type, reserved, sector
_HEADER_SIZE = _HEADER.size
_unpack_header = _HEADER.unpack_from
_SEGMENT = struct.Struct("<QII")  # sector, num_sectors, flags
_SECONDS_BETWEEN_ERRORS = 10.0
_log = logging.getLogger(__name__)


class BlkConfig(ConfigSpace):
    """struct virtio_blk_config (virtio 1.3 section 5.2.4)."""

    capacity = le64(0)
    size_max = le32(8, feature=F_SIZE_MAX)
    seg_max = le32(12, feature=F_SEG_MAX)
    geometry_cylinders = le16(16, feature=F_GEOMETRY)
    geometry_heads = u8(18, feature=F_GEOMETRY)
    geometry_sectors = u8(19, feature=F_GEOMETRY)
    blk_size = le32(20, feature=F_BLK_SIZE)
    topology_physical_block_exp = u8(24, feature=F_TOPOLOGY)
    topology_alignment_offset = u8(25, feature=F_TOPOLOGY)
    topology_min_io_size = le16(26, feature=F_TOPOLOGY)
    topology_opt_io_size = le32(28, feature=F_TOPOLOGY)
    writeback = u8(32, feature=F_CONFIG_WCE, writable=True)
    unused0 = u8(33, feature=F_MQ)
    num_queues = le16(34, feature=F_MQ)
    max_discard_sectors = le32(36, feature=F_DISCARD)
    max_discard_seg = le32(40, feature=F_DISCARD)
    discard_sector_alignment = le32(44, feature=F_DISCARD)
    max_write_zeroes_sectors = le32(48, feature=F_WRITE_ZEROES)
    max_write_zeroes_seg = le32(52, feature=F_WRITE_ZEROES)
    write_zeroes_may_unmap = u8(56, feature=F_WRITE_ZEROES)
    unused1 = array(u8, 3, 57, feature=F_WRITE_ZEROES)
    max_secure_erase_sectors = le32(60, feature=F_SECURE_ERASE)
    max_secure_erase_seg = le32(64, feature=F_SECURE_ERASE)
    secure_erase_sector_alignment = le32(68, feature=F_SECURE_ERASE)
    zoned_zone_sectors = le32(72, feature=F_ZONED)
    zoned_max_open_zones = le32(76, feature=F_ZONED)
    zoned_max_active_zones = le32(80, feature=F_ZONED)
    zoned_max_append_sectors = le32(84, feature=F_ZONED)
    zoned_write_granularity = le32(88, feature=F_ZONED)
    zoned_model = u8(92, feature=F_ZONED)
    zoned_unused2 = array(u8, 3, 93, feature=F_ZONED)


class Blk(Device):
    """Block device (virtio 1.3 section 5.2) on a regular file or a block device of the host.

    path        the file
    readonly    the guest cannot write, and the file is opened read-only
    serial      the ID string a guest shows, up to 20 ASCII characters
    size        bytes of the disk, a multiple of the block size, by default as many as the file has. A regular file
                that is shorter is made longer
    block_size  logical block size the guest is told of
    queues      number of request queues, 1 to 64
    discard     whether the guest may give space back to the host

    The disk ends at a multiple of the block size: what a file has behind its last whole block is neither shown nor
    touched, and the log says so. A file without one whole block is refused. Every request is done when its handler
    returns, so nothing is in flight at a reset.

    A write is on stable storage at the latest when a FLUSH after it completes; in write-through mode (no FLUSH
    negotiated, or `writeback` 0) when it completes itself. Once fdatasync has failed the kernel may have dropped what
    was to be written, and a later success would not mean what it says: every FLUSH and every write-through write is
    answered IOERR until the device is reset.

    A request that the specification forbids but that can be answered gets IOERR or UNSUPP. The data part of a failed
    read is zeroes.
    """

    name = "blk"
    device_id = 2
    config_space = BlkConfig
    config: BlkConfig
    queues = (Queue("requestq1", QUEUE_SIZE, handler="requestq"),)
    features = mask(F_SEG_MAX, F_BLK_SIZE, F_TOPOLOGY, F_FLUSH, F_CONFIG_WCE)
    offers = features | mask(F_RO, F_MQ, F_DISCARD, F_WRITE_ZEROES)
    feature_table = FeatureTable(
        {
            F_SIZE_MAX: "VIRTIO_BLK_F_SIZE_MAX",
            F_SEG_MAX: "VIRTIO_BLK_F_SEG_MAX",
            F_GEOMETRY: "VIRTIO_BLK_F_GEOMETRY",
            F_RO: "VIRTIO_BLK_F_RO",
            F_BLK_SIZE: "VIRTIO_BLK_F_BLK_SIZE",
            F_FLUSH: "VIRTIO_BLK_F_FLUSH",
            F_TOPOLOGY: "VIRTIO_BLK_F_TOPOLOGY",
            F_CONFIG_WCE: "VIRTIO_BLK_F_CONFIG_WCE",
            F_MQ: "VIRTIO_BLK_F_MQ",
            F_DISCARD: "VIRTIO_BLK_F_DISCARD",
            F_WRITE_ZEROES: "VIRTIO_BLK_F_WRITE_ZEROES",
            F_LIFETIME: "VIRTIO_BLK_F_LIFETIME",
            F_SECURE_ERASE: "VIRTIO_BLK_F_SECURE_ERASE",
            F_ZONED: "VIRTIO_BLK_F_ZONED",
        }
    )

    def __init__(
        self,
        *,
        path: Path,
        readonly: bool = False,
        serial: str = "",
        size: Size | None = None,
        block_size: Literal[512, 1024, 2048, 4096] = 512,
        queues: int = 1,
        discard: bool = True,
    ) -> None:
        if not serial.isascii():
            raise ValueError(f"serial={serial} has characters that are not ASCII")
        if len(serial) > ID_BYTES:
            raise ValueError(f"serial={serial} has {len(serial)} characters; {ID_BYTES} are allowed")
        if not 1 <= queues <= MAX_QUEUES:
            raise ValueError(f"queues={queues} is not from 1 to {MAX_QUEUES}")
        _check_size(size, block_size)
        features = self.features
        if queues > 1:
            features |= mask(F_MQ)
        if readonly:
            features |= mask(F_RO)
        else:
            features |= mask(F_WRITE_ZEROES) | (mask(F_DISCARD) if discard else 0)
        names = [f"requestq{number}" for number in range(1, queues + 1)]
        super().__init__(features=features, queues=[Queue(name, QUEUE_SIZE, handler="requestq") for name in names])

        self._image = DiskImage(path, readonly=readonly)
        self._size = size
        self._block_size = block_size
        self._end = 0  # of the disk, in bytes: as `capacity` says
        self._serial = serial.encode("ascii").ljust(ID_BYTES, b"\0")
        self._negotiated = 0
        self._writeback = False  # as `writeback` says, once features are negotiated
        self._flush_failed = False
        self._next_log = 0.0
        self._commands: dict[int, Callable[[int, Request], int]] = {
            T_IN: self._in,
            T_OUT: self._out,
            T_FLUSH: self._flush,
            T_GET_ID: self._get_id,
            T_DISCARD: self._discard,
            T_WRITE_ZEROES: self._write_zeroes,
        }

        config = self.config
        config.seg_max = QUEUE_SIZE - 2  # the header and the status byte take a descriptor each
        config.blk_size = block_size
        config.topology_physical_block_exp = (_PHYSICAL_BLOCK // block_size).bit_length() - 1
        config.topology_min_io_size = _PHYSICAL_BLOCK // block_size
        config.writeback = 1
        if queues > 1:
            config.num_queues = queues
        if has(features, F_DISCARD):
            config.max_discard_sectors = MAX_DISCARD_SECTORS
            config.max_discard_seg = MAX_DISCARD_SEGMENTS
            config.discard_sector_alignment = _PHYSICAL_BLOCK // SECTOR
        if has(features, F_WRITE_ZEROES):
            config.max_write_zeroes_sectors = MAX_WRITE_ZEROES_SECTORS
            config.max_write_zeroes_seg = MAX_WRITE_ZEROES_SEGMENTS
            config.write_zeroes_may_unmap = discard
        self._may_unmap = discard

    # ---- Life cycle -----------------------------------------------------------------------------------------------

    def check(self) -> None:
        present = self._image.check(self._size)
        if self._size is None:
            self._sectors(present)

    def open(self) -> None:
        self._image.open()
        try:
            self._set_capacity(self._size)
        except BaseException:
            self._image.close()
            raise

    def close(self) -> None:
        self._image.close()

    def features_ok(self, features: int) -> None:
        self._negotiated = features
        # Without FLUSH the driver has no way to make a volatile write stable (section 5.2.5.2).
        self.config.writeback = self._writeback = has(features, F_FLUSH)

    def activate(self, features: int, queues: Sequence[int]) -> None:
        self._negotiated = features

    def reset(self) -> None:
        self._negotiated = 0
        self._flush_failed = False
        self.config.writeback = 1
        self._writeback = False

    def update(self, *, size: Size | None = None) -> None:
        """Makes the disk `size` bytes long, by default as long as the file is now, and tells the driver.

        A regular file that is shorter is made longer; one that is longer keeps what it has behind the disk's end.
        Raises ValueError for a size that is no whole number of blocks, DeviceError.
        """
        _check_size(size, self._block_size)
        before = self.config.capacity
        self._set_capacity(size)
        if self.config.capacity != before:
            self.backend.config_changed()

    @on_write("writeback")
    def set_writeback(self, value: int) -> None:
        if value > 1:
            raise ValueError(f"writeback {value} is neither 0 nor 1")
        if not has(self._negotiated, F_CONFIG_WCE) or (value and not has(self._negotiated, F_FLUSH)):
            raise ValueError("the cache mode cannot be chosen with the negotiated features")
        self._writeback = value != 0

    def queues_for(self, features: int) -> Sequence[Queue | None]:
        usable = len(self.queues) if has(features, F_MQ) else 1
        return tuple(queue if index < usable else None for index, queue in enumerate(self.queues))

    # ---- Requests -------------------------------------------------------------------------------------------------

    def requestq(self, request: Request) -> None:
        readable = request.readable
        if len(readable) < _HEADER_SIZE or not request.writable_bytes:
            raise RequestError(f"blk: no header of {_HEADER_SIZE} bytes, or no status byte, in {request!r}")
        kind, _, sector = _unpack_header(readable)
        command = self._commands.get(kind)
        try:
            status = command(sector, request) if command else S_UNSUPP
        except OSError as error:
            self._report(kind, sector, error)
            status = S_IOERR
        request.write_last(_STATUS_BYTES[status])

    def _in(self, sector: int, request: Request) -> int:
        size = request.writable_bytes - 1
        if len(request.readable) != _HEADER_SIZE or not self._in_range(sector, size):
            return S_IOERR
        views = request.reserve(size)
        try:
            self._image.read(views, sector * SECTOR)
        except OSError:
            zero(views)
            raise
        return S_OK

    def _out(self, sector: int, request: Request) -> int:
        data = memoryview(request.readable)[_HEADER_SIZE:]
        if self._image.readonly or request.writable_bytes != 1 or not self._in_range(sector, len(data)):
            return S_IOERR
        self._image.write(data, sector * SECTOR)
        return S_OK if self._writeback else self._commit()

    def _flush(self, sector: int, request: Request) -> int:
        return self._commit() if has(self._negotiated, F_FLUSH) else S_UNSUPP

    def _get_id(self, sector: int, request: Request) -> int:
        request.write(self._serial[: request.writable_bytes - 1])
        return S_OK

    def _discard(self, sector: int, request: Request) -> int:
        if not has(self._negotiated, F_DISCARD):
            return S_UNSUPP
        ranges = self._segments(request, 0, MAX_DISCARD_SECTORS, MAX_DISCARD_SEGMENTS)
        if isinstance(ranges, int):
            return ranges
        for offset, size, _ in ranges:
            # Only advice: an image that cannot deallocate has still done what was asked (section 5.2.6.2).
            self._image.discard(offset, size)
        return S_OK

    def _write_zeroes(self, sector: int, request: Request) -> int:
        if not has(self._negotiated, F_WRITE_ZEROES):
            return S_UNSUPP
        ranges = self._segments(request, FLAG_UNMAP, MAX_WRITE_ZEROES_SECTORS, MAX_WRITE_ZEROES_SEGMENTS)
        if isinstance(ranges, int):
            return ranges
        for offset, size, flags in ranges:
            self._image.write_zeroes(offset, size, unmap=self._may_unmap and flags & FLAG_UNMAP != 0)
        return S_OK if self._writeback else self._commit()

    # ---- Checks and state -----------------------------------------------------------------------------------------

    def _in_range(self, sector: int, size: int) -> bool:
        # Python's integers do not wrap: sector + size may exceed 64 bits and still compares right.
        return size % SECTOR == 0 and sector * SECTOR + size <= self._end

    def _segments(
        self, request: Request, known_flags: int, max_sectors: int, max_segments: int
    ) -> list[tuple[int, int, int]] | int:
        """The request's segments as (offset, size, flags), in bytes, all checked; or the status that refuses it."""
        data = memoryview(request.readable)[_HEADER_SIZE:]
        if not data or len(data) % _SEGMENT.size or len(data) > max_segments * _SEGMENT.size:
            return S_IOERR
        segments = list(_SEGMENT.iter_unpack(data))
        if any(flags & ~known_flags for _, _, flags in segments):
            return S_UNSUPP
        if any(count > max_sectors or not self._in_range(sector, count * SECTOR) for sector, count, _ in segments):
            return S_IOERR
        return [(sector * SECTOR, count * SECTOR, flags) for sector, count, flags in segments]

    def _commit(self) -> int:
        if self._flush_failed:
            return S_IOERR
        try:
            self._image.commit()
        except OSError:
            self._flush_failed = True
            raise
        return S_OK

    def _set_capacity(self, size: int | None) -> None:
        if size is None:
            size = self._image.size()
        else:
            self._image.grow(size)
        sectors = self._sectors(size)
        self.config.capacity = sectors
        self._end = sectors * SECTOR
        if rest := size % self._block_size:
            text = "image %s: the guest does not see its last %d bytes, which are no whole block of %d"
            _log.warning(text, self._image.path, rest, self._block_size)

    def _sectors(self, size: int) -> int:
        """The sectors of the whole blocks in that many bytes. Raises DeviceError if there is none."""
        sectors = size // self._block_size * (self._block_size // SECTOR)
        if not sectors:
            raise DeviceError(
                f"image {self._image.path} has {size} bytes, not one block of {self._block_size}; "
                "size=1G, for one, makes a file longer"
            )
        return sectors

    def _report(self, kind: int, sector: int, error: OSError) -> None:
        # A guest can repeat what fails as fast as it likes.
        now = time.monotonic()
        if now >= self._next_log:
            self._next_log = now + _SECONDS_BETWEEN_ERRORS
            _log.error("image %s: request type %d at sector %d failed: %s", self._image.path, kind, sector, error)


def _check_size(size: int | None, block_size: int) -> None:
    if size is not None and (not 0 < size < 1 << 63 or size % block_size):
        raise ValueError(f"size={size} is no multiple of {block_size} from {block_size} to 2^63 - {block_size}")
