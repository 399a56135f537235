"""What goes over the stream: frames of a kind, the number of a process, and bytes.

offset  size
0       1     kind
1       4     number of the process, chosen by who started it
5       4     length of what follows
9             payload
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from typing import Final

HEADER: Final = struct.Struct("<BII")


class Kind(enum.IntEnum):
    HELLO = 1
    """From the domU, first of all."""
    START = 2
    """To the domU: JSON with `argv`, `environment`, `directory`, `merged`."""
    STDIN = 3
    STDIN_END = 4
    SIGNAL = 5
    """To the domU: four bytes, the signal's number."""
    STDOUT = 6
    STDERR = 7
    EXIT = 8
    """From the domU: four bytes, signed, as of subprocess.Popen.returncode."""
    FAILED = 9
    """From the domU: the process could not be started; the reason."""


def encode(kind: Kind, number: int, payload: bytes = b"") -> bytes:
    return HEADER.pack(kind, number, len(payload)) + payload


class Decoder:
    """Cuts a stream into frames."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Kind, int, bytes]]:
        self._data += data
        while len(self._data) >= HEADER.size:
            kind, number, length = HEADER.unpack_from(self._data)
            end = HEADER.size + length
            if len(self._data) < end:
                return
            payload = bytes(self._data[HEADER.size : end])
            del self._data[:end]
            yield Kind(kind), number, payload
