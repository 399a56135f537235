"""Where the machines of the local hypervisor live (docs/local.md): both halves must find the same directory."""

import os
import re
from pathlib import Path
from typing import Final

DEFAULT_MACHINE: Final = "default"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}")


def machine_directory(name: str = DEFAULT_MACHINE) -> Path:
    """The directory of machine `name`: in VIRTIO_DM_RUNTIME_DIR, else $XDG_RUNTIME_DIR/virtio-dm, else
    /run/virtio-dm (root) or /tmp/virtio-dm-<uid>. It need not exist. Raises ValueError for a bad name.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"machine name {name!r}: up to 32 letters, digits, '_', '-' and '.', not beginning with '-' or '.'"
        )
    return _runtime_directory() / name


def _runtime_directory() -> Path:
    if base := os.environ.get("VIRTIO_DM_RUNTIME_DIR"):
        return Path(base)
    if base := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(base) / "virtio-dm"
    uid = os.geteuid()
    return Path("/run/virtio-dm") if uid == 0 else Path(f"/tmp/virtio-dm-{uid}")
