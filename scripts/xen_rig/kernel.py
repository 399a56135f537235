"""An uncompressed kernel out of a bzImage: `xl create` decompressing one takes seconds in software emulation."""

from __future__ import annotations

import lzma
import shutil
import struct
import subprocess
import zlib
from typing import Final

from scripts.xen_rig.errors import RigError

SETUP_SECTORS: Final = 0x1F1
MAGIC: Final = 0x202
PAYLOAD: Final = 0x248
"""payload_offset and payload_length, see Linux, Documentation/arch/x86/boot.rst."""


def vmlinux(image: bytes) -> bytes:
    """The ELF file inside. Raises RigError for an image that is none or compressed in a way that nothing here reads."""
    if image[MAGIC : MAGIC + 4] != b"HdrS" or len(image) < PAYLOAD + 8:
        raise RigError(f"a kernel image of {len(image)} bytes is no bzImage")
    offset, length = struct.unpack_from("<II", image, PAYLOAD)
    start = (image[SETUP_SECTORS] + 1) * 512 + offset
    payload = image[start : start + length]
    elf = _decompress(payload)
    if not elf.startswith(b"\x7fELF"):
        raise RigError(f"the kernel's payload begins with {elf[:4].hex()}, not with an ELF header")
    return elf


def _decompress(payload: bytes) -> bytes:
    # The decompressed size stands after the compressed data, so a decompressor must stop by itself.
    if payload.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor().decompress(payload)
    if payload.startswith(b"\x1f\x8b"):
        return zlib.decompressobj(wbits=31).decompress(payload)
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        zstd = shutil.which("zstd")
        if zstd is None:
            raise RigError("the kernel is compressed with zstd; as root: apt-get install zstd")
        return subprocess.run([zstd, "-dcq"], input=payload[:-4], stdout=subprocess.PIPE, check=True).stdout
    raise RigError(f"the kernel is compressed in an unknown way ({payload[:4].hex()})")
