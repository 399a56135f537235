"""A domU whose own kernel drives the devices: guest/linux loaded, stock virtio drivers above it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from scripts.xen_rig.domu_agent.client import DomuGone
from tests.xen.domu import Domu
from tests.xen.serving import until

MODULE: Final = "/rig/site/module/virtio_msg_xen.ko"
DRIVERS: Final = "virtio_blk virtio_net virtio-rng crc32c_generic ext4"
DRIVER: Final = "/sys/bus/xen/drivers/virtio-msg"
TIMEOUT: Final = "/sys/module/virtio_msg_xen/parameters/timeout_ms"
HWRNG: Final = "/sys/class/misc/hw_random"
TRACING: Final = "/sys/kernel/tracing"
GET_CONFIG: Final = "id=0x5 "
"""In a line of a trace."""


@contextmanager
def module(domu: Domu) -> Iterator[Domu]:
    """`domu` with the module and the stock drivers; afterwards without the module, or another domU if that fails."""
    shell(domu, f"modprobe -a {DRIVERS} && insmod {MODULE}")
    try:
        yield domu
    finally:
        try:
            unload(domu)
        except (AssertionError, TimeoutError, DomuGone):
            domu.replace()
            raise


@contextmanager
def deadline(domu: Domu, milliseconds: int) -> Iterator[None]:
    """With so much time for an answer of the backend; for tests in which there is none."""
    shell(domu, f"cat {TIMEOUT} > /tmp/timeout; echo {milliseconds} > {TIMEOUT}")
    try:
        yield
    finally:
        shell(domu, f"cat /tmp/timeout > {TIMEOUT}")


def unload(domu: Domu) -> None:
    """A bound device keeps the module in use, and one that has vanished until its driver is done with it.

    Those that are vanishing are left to themselves: xenbus locks up if one is unbound just then (docs/guest.md).
    """
    there = "xenstore-exists device/virtio-msg/${device##*-}"
    domu.run(f"cd {DRIVER} && for device in virtio-msg-*; do {there} && echo $device > unbind; done")
    until(lambda: domu.run("rmmod virtio_msg_xen").code == 0, f"the module stays:\n{log(domu)}")


def shell(domu: Domu, command: str, timeout: float = 120.0) -> str:
    """Output of a command that must succeed."""
    code, output = domu.run(command, timeout)
    assert code == 0, f"{command}: {code}: {output}\n{log(domu)}"
    return output.strip()


def log(domu: Domu) -> str:
    """The end of the kernel's messages."""
    return domu.run("dmesg | tail -n 30").output


def await_path(domu: Domu, path: str) -> None:
    until(lambda: domu.run(["test", "-e", path]).code == 0, f"{path} is not there:\n{log(domu)}")


def await_gone(domu: Domu, path: str) -> None:
    until(lambda: domu.run(["test", "-e", path]).code != 0, f"{path} is still there:\n{log(domu)}")


def entropy_sources(domu: Domu) -> list[str]:
    """Those that /dev/hwrng can have."""
    names = shell(domu, f"cat {HWRNG}/rng_available").split()
    return [name for name in names if name != "none"]  # a choice that newer kernels have


@contextmanager
def traced(domu: Domu, event: str) -> Iterator[None]:
    """With an event of the module's in the trace, see `trace`."""
    code, output = domu.run(f"mount -t tracefs tracefs {TRACING}")
    assert code == 0 or "busy" in output, output
    shell(domu, f"echo > {TRACING}/trace; echo 1 > {TRACING}/events/virtio_msg_xen/{event}/enable")
    try:
        yield
    finally:
        shell(domu, f"echo 0 > {TRACING}/events/virtio_msg_xen/{event}/enable")


def trace(domu: Domu) -> list[str]:
    return [line for line in shell(domu, f"cat {TRACING}/trace").splitlines() if not line.startswith("#")]
