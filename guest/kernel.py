"""What the agent does for the bench with the domain's own kernel: modules, disks and network cards of its drivers.

Everything runs as the user of the agent, who has to be root. A recorder comes back as from guest.measuring.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from cpp_ring import LatencyRecorder, clock_ns
from guest import messages
from guest.errors import DriverError
from guest.measuring import recorded

Answer = dict[str, Any]

PATIENCE: Final = 20.0
LOOK: Final = 0.0005
"""Seconds between two looks for what the kernel makes in its own time."""
MODULE: Final = "virtio_msg_xen"
TRACING: Final = Path("/sys/kernel/tracing")
ANSWER_EVENT: Final = TRACING / "events/virtio_msg_xen/vmsgx_answer/enable"
ANSWERED: Final = re.compile(r"id=(0x[0-9a-f]+) .* payload=\d+ ns=(\d+)")
UNIT: Final = 1 << 16
"""Bytes that a stream is sent in."""


class Kernel:
    """Operations of the agent on what the kernel of its domain drives."""

    def op_kernel_without(self, paths: list[str]) -> Answer:
        """Refuses a domain that has any of these: what is measured there would be somebody's data."""
        for path in paths:
            if Path(path).exists():
                raise DriverError(f"{path} is there already; the bench wants a domain without it")
        return {}

    def op_kernel_modules(self, names: list[str]) -> Answer:
        """Loads modules of the distribution with what they need."""
        run("modprobe", "-a", *names)
        return {}

    def op_kernel_load(self, module: str, parameters: Sequence[str] = ()) -> Answer:
        """Loads one from its file; `parameters` as NAME=VALUE."""
        run("insmod", module, *parameters)
        return {}

    def op_kernel_unload(self) -> Answer:
        """Unbinds the devices of the project's module and removes it."""
        driver = Path("/sys/bus/xen/drivers/virtio-msg")
        for device in driver.glob("virtio-msg-*"):
            (driver / "unbind").write_text(device.name)
        reason = ""

        def removed() -> bool:
            nonlocal reason
            done = subprocess.run(["rmmod", MODULE], capture_output=True, text=True, check=False)
            reason = done.stderr.strip()
            return done.returncode == 0

        wait(removed, lambda: reason or "rmmod")
        return {}

    def op_kernel_wait(self, path: str) -> Answer:
        wait(lambda: Path(path).exists(), path)
        return {}

    def op_kernel_address(self, mac: str, address: str) -> Answer:
        """Gives the card with this MAC an address, ADDRESS/PREFIX, and brings it up."""
        cards = Path("/sys/class/net")
        found: list[str] = []

        def looked() -> bool:
            with contextlib.suppress(OSError):  # one that has just gone
                found[:] = [path.parent.name for path in cards.glob("*/address") if path.read_text().strip() == mac]
            return bool(found)

        wait(looked, f"a network card {mac}")
        run("ip", "addr", "add", address, "dev", found[0])
        run("ip", "link", "set", found[0], "up")
        return {"name": found[0]}

    # ---- the module ----

    def op_measure_module_probe(self, module: str, path: str, count: int) -> Answer:
        """From insmod to a disk that can be opened, which is gone when the module is. It is not loaded."""
        recorder = LatencyRecorder()
        for _ in range(count):
            start = clock_ns()
            run("insmod", module)
            try:
                wait(lambda: can_open(path), path)
                recorder.record(clock_ns() - start)
            finally:
                self.op_kernel_unload()
        return recorded(recorder)

    def op_measure_module_config(self, driver: str, count: int) -> Answer:
        """GET_CONFIG as the module itself times it, while `driver` is bound to its device again and again."""
        if not ANSWER_EVENT.exists():
            run("mount", "-t", "tracefs", "tracefs", str(TRACING))
        directory = Path("/sys/bus/virtio/drivers") / driver
        wait(lambda: any(directory.glob("virtio*")), f"a device of {driver}")
        device = next(directory.glob("virtio*")).name
        recorder = LatencyRecorder()
        ANSWER_EVENT.write_text("1")
        try:
            while recorder.count < count:
                (TRACING / "trace").write_text("")
                (directory / "unbind").write_text(device)
                (directory / "bind").write_text(device)
                before = recorder.count
                for kind, ns in ANSWERED.findall((TRACING / "trace").read_text()):
                    if int(kind, 16) == messages.GET_CONFIG:
                        recorder.record(int(ns))
                if recorder.count == before:
                    raise DriverError(f"{driver} asked for nothing when it was bound")
        finally:
            ANSWER_EVENT.write_text("0")
        return recorded(recorder)

    # ---- disks ----

    def op_measure_disk(
        self, path: str, count: int, size: int = 4096, depth: int = 1, write: bool = False, sequential: bool = False
    ) -> Answer:
        """`count` requests of `size` bytes past the page cache, `depth` at a time, each timed from call to return.
        `ns`: of all of them.
        """

        def one(disk: int, buffer: mmap.mmap, offset: int) -> None:
            done = os.pwrite(disk, buffer, offset) if write else os.preadv(disk, [buffer], offset)
            if done != size:
                raise DriverError(f"{path}: {done} bytes at {offset}")

        return at_depth(path, one, count, size, depth, sequential)

    def op_measure_flush(self, path: str, count: int, depth: int = 1) -> Answer:
        """A write of 4 KiB, which is not timed, then a flush, which is."""
        recorder = LatencyRecorder()
        start = clock_ns()
        with opened(path, os.O_RDWR | os.O_DIRECT) as disk:
            os.fsync(disk)  # what earlier rows have written through any disk of the same file is not this one's
            at_once(depth, share(count, depth), lambda part: flushes(disk, part, recorder))
        return recorded(recorder) | {"ns": clock_ns() - start}

    # ---- network ----

    def op_measure_tcp_rr(self, host: str, port: int, count: int) -> Answer:
        """One byte there and one back, over one connection to an echo."""
        recorder = LatencyRecorder()
        with socket.create_connection((host, port), PATIENCE) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(count):
                start = clock_ns()
                connection.sendall(b"?")
                if not connection.recv(1):
                    raise DriverError("the echo ended")
                recorder.record(clock_ns() - start)
        return recorded(recorder)

    def op_measure_tcp_stream(self, host: str, port: int, size: int) -> Answer:
        """`size` bytes to a sink, which closes when it has all. `ns`: till then."""
        data = bytes(UNIT)
        with socket.create_connection((host, port), PATIENCE) as connection:
            start = clock_ns()
            for offset in range(0, size, UNIT):
                connection.sendall(data[: size - offset])
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)
            return {"ns": clock_ns() - start}


def run(*command: str) -> None:
    """Raises DriverError with what the command said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DriverError(f"{' '.join(command)}: {error}") from error
    if done.returncode:
        said = "; ".join((done.stderr + done.stdout).strip().split("\n")[:3])
        raise DriverError(f"{' '.join(command)}: {said or done.returncode}")


def wait(condition: Callable[[], bool], what: str | Callable[[], str]) -> None:
    """Raises DriverError that says for what."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise DriverError(f"waited {PATIENCE:g} s for {what if isinstance(what, str) else what()}")
        time.sleep(LOOK)


@contextlib.contextmanager
def opened(path: str, flags: int) -> Iterator[int]:
    disk = os.open(path, flags)
    try:
        yield disk
    finally:
        os.close(disk)


def can_open(path: str) -> bool:
    try:
        with opened(path, os.O_RDONLY):
            return True
    except OSError:
        return False


def share(count: int, depth: int) -> list[int]:
    """`count` in `depth` parts of the same size, or nearly."""
    return [count // depth + (part < count % depth) for part in range(depth)]


def at_once(depth: int, parts: list[int], work: Callable[[int], None]) -> None:
    """`work(part)` in `depth` threads. Raises what the first of them raised."""
    failures: list[BaseException] = []

    def guarded(part: int) -> None:
        try:
            work(part)
        except BaseException as error:
            failures.append(error)

    if depth == 1:
        work(parts[0])
        return
    threads = [threading.Thread(target=guarded, args=(part,)) for part in parts if part]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def at_depth(
    path: str,
    one: Callable[[int, mmap.mmap, int], None],
    count: int,
    size: int,
    depth: int,
    sequential: bool,
) -> Answer:
    recorder = LatencyRecorder()
    with opened(path, os.O_RDWR | os.O_DIRECT) as disk:
        slots = os.lseek(disk, 0, os.SEEK_END) // size
        order = [number % slots if sequential else random.randrange(slots) for number in range(count)]
        following = iter(order)

        def work(part: int) -> None:
            with mmap.mmap(-1, size) as buffer:  # of whole pages, as O_DIRECT wants it
                for _ in range(part):
                    offset = next(following) * size
                    start = clock_ns()
                    one(disk, buffer, offset)
                    recorder.record(clock_ns() - start)

        start = clock_ns()
        at_once(depth, share(count, depth), work)
        return recorded(recorder) | {"ns": clock_ns() - start}


def flushes(disk: int, count: int, recorder: LatencyRecorder) -> None:
    with mmap.mmap(-1, mmap.PAGESIZE) as buffer:
        for number in range(count):
            os.pwrite(disk, buffer, number % 64 * mmap.PAGESIZE)
            start = clock_ns()
            os.fsync(disk)
            recorder.record(clock_ns() - start)
