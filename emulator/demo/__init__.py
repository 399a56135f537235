"""`virtio-dm demo`: the main job on real input, each step checked, in half a minute."""

from emulator.demo.command import command

__all__ = ["command"]
