"""The file or block device behind a virtio-blk device: locked, read, written and deallocated by byte ranges."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from devices.errors import DeviceError, InUse

# Linux takes this many buffers in one preadv (UIO_MAXIOV).
MAX_VIEWS = 1024
ZEROES = bytes(1 << 20)

# An image is locked for a moment by whoever only looks whether it is in use, as `check` does.
_LOCK_SECONDS = 0.2
_LOCK_LOOKS = 10

# linux/falloc.h
KEEP_SIZE = 0x01
PUNCH_HOLE = 0x02
ZERO_RANGE = 0x10


class DiskImage:
    """One regular file or block device.

    Several processes may have an image open read-only, or one may have it open for writing (flock). The lock goes
    with the process, however it ends.
    """

    def __init__(self, path: Path, *, readonly: bool) -> None:
        self.path = path
        self.readonly = readonly
        self._fd = -1
        self._block_device = False

    def check(self, size: int | None = None) -> int:
        """Looks at the file, and whether it is in use, without keeping it open; returns the bytes it has.

        `size`: what it is to `grow` to. Raises DeviceError.
        """
        try:
            mode = self.path.stat().st_mode
        except OSError as error:
            raise DeviceError(f"image {self.path}: {_text(error)}") from error
        self._check_type(mode)
        wanted = os.R_OK if self.readonly else os.R_OK | os.W_OK
        if not os.access(self.path, wanted, effective_ids=os.access in os.supports_effective_ids):
            hint = "" if self.readonly else "; for a read-only disk say readonly=on"
            raise DeviceError(f"image {self.path}: not allowed to {'read' if self.readonly else 'write'} it{hint}")
        self.open()
        try:
            present = self.size()
            if size is not None:
                self._check_growth(present, size)
            return present
        finally:
            self.close()

    def open(self) -> None:
        """Opens and locks the file. Raises DeviceError."""
        access = os.O_RDONLY if self.readonly else os.O_RDWR
        try:
            # O_NONBLOCK: the open of a FIFO must not wait for its other end. Disks do not know the flag.
            self._fd = os.open(self.path, access | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            raise DeviceError(f"image {self.path}: {_text(error)}") from error
        try:
            mode = os.fstat(self._fd).st_mode
            self._check_type(mode)
            self._block_device = stat.S_ISBLK(mode)
            self._lock()
        except DeviceError:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise DeviceError(f"image {self.path}: cannot be locked: {_text(error)}") from error

    def close(self) -> None:
        """Closes the file if it is open; the lock goes with it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def size(self) -> int:
        """Bytes the image has now. Raises DeviceError."""
        try:
            return os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:
            raise DeviceError(f"image {self.path}: {_text(error)}") from error

    def grow(self, size: int) -> None:
        """Makes the image at least `size` bytes long, sparsely. Raises DeviceError if it cannot be so long."""
        present = self.size()
        if size <= present:
            return
        self._check_growth(present, size)
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            raise DeviceError(f"image {self.path}: cannot grow to {size} bytes: {_text(error)}") from error

    def read(self, views: list[memoryview], offset: int) -> None:
        """Fills `views` from byte `offset` on. Raises OSError; EIO if the image ends before."""
        left = sum(map(len, views))
        while left:
            done = os.preadv(self._fd, views[:MAX_VIEWS], offset)
            if done == left:
                return  # as it nearly always is
            if done == 0:
                raise OSError(errno.EIO, f"the image ends at byte {offset}")
            left -= done
            offset += done
            views = _after(views, done)

    def write(self, data: memoryview, offset: int) -> None:
        """Writes all of `data` at byte `offset`. Raises OSError."""
        while data:
            done = os.pwrite(self._fd, data, offset)
            if done == len(data):
                return  # as it nearly always is
            if done == 0:
                raise OSError(errno.EIO, f"nothing can be written at byte {offset}")
            offset += done
            data = data[done:]

    def commit(self) -> None:
        """Puts every completed write on stable storage. Raises OSError."""
        os.fdatasync(self._fd)

    def discard(self, offset: int, size: int) -> bool:
        """Deallocates a byte range, which then reads as zeroes; False if the image cannot. Raises OSError."""
        return self._fallocate(PUNCH_HOLE | KEEP_SIZE, offset, size)

    def write_zeroes(self, offset: int, size: int, *, unmap: bool) -> None:
        """Makes a byte range read as zeroes, deallocated if `unmap` and possible. Raises OSError."""
        if unmap and self.discard(offset, size):
            return
        if self._fallocate(ZERO_RANGE | KEEP_SIZE, offset, size):
            return
        zeroes = memoryview(ZEROES)
        for start in range(0, size, len(ZEROES)):
            self.write(zeroes[: size - start], offset + start)

    def _lock(self) -> None:
        kind = fcntl.LOCK_SH if self.readonly else fcntl.LOCK_EX
        for look in range(_LOCK_LOOKS):
            if look:
                time.sleep(_LOCK_SECONDS / _LOCK_LOOKS)
            try:
                fcntl.flock(self._fd, kind | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno != errno.EWOULDBLOCK:
                    raise
            else:
                return
        raise InUse("image", self.path)

    def _check_growth(self, present: int, size: int) -> None:
        if size > present and (self.readonly or self._block_device):
            reason = "read-only" if self.readonly else "a block device"
            raise DeviceError(f"image {self.path} has {present} bytes and is {reason}: it cannot grow to {size}")

    def _check_type(self, mode: int) -> None:
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise DeviceError(f"image {self.path} is neither a regular file nor a block device")

    def _fallocate(self, mode: int, offset: int, size: int) -> bool:
        if size == 0:
            return True
        call = _libc_fallocate()
        while error := call(self._fd, mode, offset, size):
            if error in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                # A file system, or a kind of block device, that cannot; the caller has another way.
                return False
            if error != errno.EINTR:
                raise OSError(error, os.strerror(error))
        return True


def _after(views: list[memoryview], size: int) -> list[memoryview]:
    """What is left of `views` behind their first `size` bytes."""
    for index, view in enumerate(views):
        if size < len(view):
            return [view[size:], *views[index + 1 :]]
        size -= len(view)
    return []


def _text(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


@cache
def _libc_fallocate() -> Callable[[int, int, int, int], int]:
    # Not at the top: ctypes costs a model that never deallocates more than all the rest of this file.
    import ctypes

    function = ctypes.CDLL(None, use_errno=True).fallocate
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

    def fallocate(fd: int, mode: int, offset: int, size: int) -> int:
        """0, or the errno."""
        return 0 if function(fd, mode, offset, size) == 0 else ctypes.get_errno()

    return fallocate
