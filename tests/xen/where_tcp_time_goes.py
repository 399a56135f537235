#!/usr/bin/python3
"""Where the time of dom0's CPU goes while a domU sends a TCP stream to it, for docs/design/009, in the rig.

    scripts/xen-rig run tests/xen/where_tcp_time_goes.py [ARG ...]

Ours and netfront on netback by turns, on one bridge. Prints the time for 64 KiB of the stream, and, by dom0's
tracepoints of a short while in the middle of it, what dom0's CPU did in that time: who ran, in which system call or
outside of any. Arguments are those of `virtio-dm run`, for the emulator.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cpp_ring import xen
from cpp_ring.store import Store
from emulator.bench.xen_drivers import command, netback
from tests.xen.domu import Domu, GuestAgent
from tests.xen.linux_guest import TRACING, module, shell
from tests.xen.serving import MIB, Emulator

TRACING_HERE: Final = Path(TRACING)
PART: Final = 1 << 16
SIZE: Final = 24 * MIB
ROUNDS: Final = 3
BRIDGE, TAP, VIF = "where-bridge", "where-tap", 1
CARDS: Final = {"ours": "02:76:64:6d:00:01", "netfront, netback": "02:76:64:6d:00:02"}
NET: Final = "10.247.{}.{}"
EVENTS: Final = ("raw_syscalls", "sched/sched_switch")
TRACED: Final = range(8 * MIB, 20 * MIB)
"""Bytes of the stream between which dom0 is traced."""
LINE: Final = re.compile(r"\s*\S.*-(\d+)\s+\[\d+\] \S+\s+(\d+\.\d+): (\w+): (.*)")
SYSTEM_CALLS: Final = {16: "ioctl (event)", 19: "readv", 20: "writev", 24: "sched_yield", 45: "recv", 232: "epoll_wait"}


@contextlib.contextmanager
def sink(host: str) -> Iterator[tuple[int, int]]:
    """A process that reads all of each connection, and has a part of it traced: its pid, its port."""
    server = socket.create_server((host, 0))
    pid = os.fork()
    if pid == 0:
        buffer = bytearray(4 * PART)
        while True:
            connection, _ = server.accept()
            with connection:
                taken = 0
                while size := connection.recv_into(buffer):
                    for mark, word in ((TRACED.start, "1"), (TRACED.stop, "0")):
                        if taken < mark <= taken + size:
                            (TRACING_HERE / "tracing_on").write_text(word)
                    taken += size
    try:
        with server:
            yield pid, server.getsockname()[1]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def names_of_threads(processes: dict[int, str]) -> dict[int, str]:
    """Thread -> name of its process."""
    return {int(task.name): name for pid, name in processes.items() for task in Path(f"/proc/{pid}/task").iterdir()}


def times(lines: list[str], threads: dict[int, str]) -> dict[str, float]:
    """Seconds of the traced time: whose, and doing what."""
    inside: dict[int, str] = {}
    spent: dict[str, float] = defaultdict(float)
    last = 0.0
    for line in lines:
        if (found := LINE.match(line)) is None:
            continue
        thread, now, event, rest = int(found[1]), float(found[2]), found[3], found[4]
        if last:  # whoever is named in the line ran until now
            who = threads.get(thread, "idle" if thread == 0 else "others")
            what = inside.get(thread, "outside") if thread in threads else ""
            spent[f"{who} {what}".strip()] += now - last
        last = now
        if event == "sys_enter":
            number = int(rest.split()[1])
            inside[thread] = SYSTEM_CALLS.get(number, "other calls")
        elif event == "sys_exit":
            inside.pop(thread, None)
    return spent


def report(guest: GuestAgent, name: str, number: int, emulator: Emulator) -> None:
    host = NET.format(number, 1)
    with sink(host) as (pid, port):
        (TRACING_HERE / "trace").write_text("")
        took = guest("measure_tcp_stream", host=host, port=port, size=SIZE)["ns"] / 1e9
        threads = names_of_threads({pid: "sink", emulator.pid: "emulator"})
        lines = (TRACING_HERE / "trace").read_text().splitlines()
    print(f"{name}: {took * PART / SIZE * 1e6:.0f} us for 64 KiB, of which in the traced part")
    for what, seconds in sorted(times(lines, threads).items(), key=lambda entry: -entry[1]):
        if (us := seconds * PART / len(TRACED) * 1e6) > 5:
            print(f"  {what:28} {us:6.0f} us", flush=True)


@contextlib.contextmanager
def bridge() -> Iterator[None]:
    command("ip", "link", "add", BRIDGE, "type", "bridge")
    command("ip", "tuntap", "add", "dev", TAP, "mode", "tap")
    command("ip", "link", "set", TAP, "master", BRIDGE, "up")
    for number in range(len(CARDS)):
        command("ip", "addr", "add", NET.format(number, 1) + "/24", "dev", BRIDGE)
    command("ip", "link", "set", BRIDGE, "up")
    try:
        yield
    finally:
        command("ip", "link", "del", TAP)
        command("ip", "link", "del", BRIDGE)


def measure(domu: Domu, store: Store, options: tuple[str, ...]) -> None:
    ours, theirs = CARDS.values()
    with (
        Emulator(domu, f"net,tap={TAP},mac={ours}", options=options) as emulator,
        netback(store, domu.domid, VIF, theirs, BRIDGE),
        domu.agent() as guest,
    ):
        for number, mac in enumerate(CARDS.values()):
            guest("kernel_address", mac=mac, address=NET.format(number, 2) + "/24")
        for _ in range(ROUNDS):
            for number, name in enumerate(CARDS):
                report(guest, name, number, emulator)


def main(options: tuple[str, ...]) -> None:
    subprocess.run(["mount", "-t", "tracefs", "tracefs", TRACING], check=True)
    (TRACING_HERE / "tracing_on").write_text("0")
    (TRACING_HERE / "buffer_size_kb").write_text("8192")
    for event in EVENTS:
        (TRACING_HERE / f"events/{event}/enable").write_text("1")
    with Domu("pv") as domu, module(domu), bridge(), xen.open_store() as store:
        shell(domu, "modprobe xen-netfront")
        measure(domu, store, options)


if __name__ == "__main__":
    main(tuple(sys.argv[1:]))
