"""Writes ramdisks: cpio archives in the `newc` format (Linux, driver-api/early-userspace/buffer-format.rst).

Uncompressed, since libxl cannot load a compressed one with another appended. Owned by root, whoever builds.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO, Final

ALIGNMENT: Final = 4
END: Final = "TRAILER!!!"
END_ALIGNMENT: Final = 512
"""Of each archive, so that archives can be appended."""


class Ramdisk:
    """An archive being written to `out`. Parents must be added before what is in them; `close` ends it."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._position = 0
        self._number = 0
        self._directories: set[str] = set()

    def directory(self, name: str, mode: int = 0o755) -> None:
        """With its parents; once."""
        parent = os.path.dirname(name)  # noqa: PTH120  names in the archive, not paths
        if parent and parent not in self._directories:
            self.directory(parent)
        if name not in self._directories:
            self._directories.add(name)
            self._entry(name, stat.S_IFDIR | mode, b"", links=2)

    def file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        self.directory(os.path.dirname(name))  # noqa: PTH120
        self._entry(name, stat.S_IFREG | mode, content)

    def link(self, name: str, target: str) -> None:
        self.directory(os.path.dirname(name))  # noqa: PTH120
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def copy(self, source: Path, name: str) -> None:
        """A file, a symbolic link as it is, or a directory with everything in it."""
        if source.is_symlink():
            self.link(name, str(source.readlink()))
        elif source.is_dir():
            self.directory(name)
            for child in sorted(source.iterdir()):
                self.copy(child, f"{name}/{child.name}")
        else:
            self.file(name, source.read_bytes(), stat.S_IMODE(source.stat().st_mode) & 0o755)

    def close(self) -> None:
        self._entry(END, 0, b"")
        self._write(bytes(-self._position % END_ALIGNMENT))

    def _entry(self, name: str, mode: int, content: bytes, links: int = 1) -> None:
        self._number += 1
        encoded = name.encode() + b"\0"
        fields = (self._number, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        self._write(b"070701" + b"".join(b"%08X" % field for field in fields) + encoded)
        self._write(bytes(-self._position % ALIGNMENT))
        self._write(content)
        self._write(bytes(-self._position % ALIGNMENT))

    def _write(self, data: bytes) -> None:
        self._out.write(data)
        self._position += len(data)
