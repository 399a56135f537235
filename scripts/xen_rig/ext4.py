"""Read-only images of directories."""

from __future__ import annotations

import os
from pathlib import Path

from scripts.xen_rig.host import run, tool

BLOCK = 4096


def make_image(directory: Path, image: Path, *, multiple: int = 1 << 20) -> None:
    """An ext4 image of what is in `directory`, its size a multiple of `multiple` bytes; a sparse file."""
    blocks, files, counted = 0, 0, set()
    for path, names, leaves in os.walk(directory):
        files += len(names) + len(leaves)
        for leaf in leaves:
            status = os.lstat(os.path.join(path, leaf))  # noqa: PTH118  ten times as fast, for 10,000 files
            if status.st_ino not in counted:
                counted.add(status.st_ino)
                blocks += -(-status.st_size // BLOCK) + 1
    size = (blocks + len(counted) // 8) * BLOCK * 21 // 20 + files * 512 + (4 << 20)
    with image.open("wb") as file:
        file.truncate(-(-size // multiple) * multiple)
    features = "^has_journal,^resize_inode,^metadata_csum,^64bit"
    options = ["-q", "-F", "-t", "ext4", "-O", features, "-m", "0", "-b", str(BLOCK), "-N", str(files + 64)]
    run([tool("mke2fs"), *options, "-E", "root_owner=0:0", "-d", directory, image])
