"""`virtio-dm bench`: round trips of the config ring beside the machine's limit and what one would use instead."""

from emulator.bench.command import command

__all__ = ["command"]
