"""One run of the bench: every row in turn, in rounds, because the machine itself drifts from minute to minute."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpp_ring import LatencyRecorder, pin_thread
from emulator.bench import device, peers, vhost_user
from emulator.bench.rows import LIMIT, Row
from emulator.bench.site import Site, create_domains, measure_pss, measure_start, open_site
from emulator.cpus import Pair, allowed, choose_pair, count_cores
from emulator.exit_codes import ExitCode, Failure
from emulator.guest_process import GuestProcess, decoded

ROUNDS = 10
DISK_BYTES = 8 << 20
BENCH_DOMAIN, START_DOMAIN, PSS_DOMAINS = 1, 2, range(3, 13)

Measure = Callable[[int, LatencyRecorder], None]


@dataclass(slots=True)
class Measured:
    """A row and how to add to it. `divisor`: it takes `count / divisor` samples."""

    row: Row
    divisor: int
    measure: Measure


@dataclass(frozen=True, slots=True)
class Result:
    """One run: what its figures depend on, and the rows by name."""

    machine: dict[str, str | int]
    rows: dict[str, Row]


def machine_line(hypervisor: str) -> dict[str, str | int]:
    """What the figures of a run depend on."""
    model = "unknown"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                model = line.split(":", 1)[1].strip()
                break
    return {
        "cpu": model,
        "cores": count_cores(range(os.cpu_count() or 1)) or "unknown",
        "cpus": os.cpu_count() or 1,
        "arch": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "hypervisor": hypervisor,
    }


def pinned(pair: Pair) -> dict[str, str | int]:
    """Where the two sides of a local run are."""
    siblings = "unknown" if pair.siblings is None else "yes" if pair.siblings else "no"
    return {"frontend-cpu": pair.first, "backend-cpu": pair.second, "smt-siblings": siblings}


def run(count: int, progress: Callable[[float, str], None]) -> Result:
    """Measures every row; the fast ones take `count` samples. `progress` gets the share done and what comes next.

    Raises Failure, and what emulator.bench.errors says.
    """
    cpus = allowed()
    if len(cpus) < 2:
        text = "the bench needs two CPUs, one for the backend, one for the frontend; this process may run on one"
        raise Failure(ExitCode.UNFIT_MACHINE, text)
    pair = choose_pair(cpus)
    client, server = pair.first, pair.second
    with contextlib.ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, cpus)
        pin_thread(client)
        site = stack.enter_context(open_site(server, client))
        table = list(_measured(site, stack))
        take_turns(table, count, progress)
        rows = {entry.row.name: entry.row for entry in table}
        start, pss = Row("emulator.start"), Row("emulator.pss", "bytes")
        progress(0.8, start.name)
        measure_start(site, START_DOMAIN, 10, start.recorder)
        progress(0.9, pss.name)
        create_domains(PSS_DOMAINS)
        measure_pss(site, PSS_DOMAINS, pss.recorder)
        return Result(machine_line("local") | pinned(pair), rows | {start.name: start, pss.name: pss})


def take_turns(
    table: Sequence[Measured], count: int, progress: Callable[[float, str], None], budget: float = math.inf
) -> None:
    """Measures every row in turn, in rounds: four fifths of a run. No round is begun after `budget` seconds."""
    deadline = time.monotonic() + budget
    for turn in range(ROUNDS):
        for number, entry in enumerate(table):
            progress(0.8 * (turn + number / len(table)) / ROUNDS, entry.row.name)
            entry.measure(max(1, count // entry.divisor // ROUNDS), entry.row.recorder)
        if time.monotonic() > deadline:
            break


def _measured(site: Site, stack: contextlib.ExitStack) -> Iterator[Measured]:
    server = site.server_cpu
    limit = stack.enter_context(peers.ping_pong(server, asleep=False))
    yield Measured(Row(LIMIT), 1, limit.measure)
    guest = stack.enter_context(site.guest(BENCH_DOMAIN))
    yield from config_rows(site, BENCH_DOMAIN, guest, stack)
    eventfd = stack.enter_context(peers.ping_pong(server, asleep=True))
    yield Measured(Row("peer.eventfd"), 100, eventfd.measure)
    yield Measured(Row("peer.unix-socket"), 40, stack.enter_context(peers.unix_socket(server)).measure)
    yield Measured(Row("peer.pipe"), 40, stack.enter_context(peers.pipe(server)).measure)
    if vhost_user.installed():
        yield Measured(Row("peer.vhost-user"), 40, stack.enter_context(vhost_user.vhost_user(server)).measure)


def config_rows(site: Site, domid: int, guest: GuestProcess, stack: contextlib.ExitStack) -> Iterator[Measured]:
    """The rows of an emulator, which `stack` ends, and of a guest, which has no device yet."""
    disk = site.directory / "disk.img"
    disk.write_bytes(os.urandom(DISK_BYTES))
    plain_device = site.attach(domid, f"{Path(device.__file__).resolve()}:Bench")
    blk = site.attach(domid, f"blk,path={disk}")
    process = stack.enter_context(site.emulator(domid))
    for devid in (plain_device, blk):
        site.await_backend(process, domid, devid)
        guest.request("connect", dev=devid)
        stack.callback(guest.close_device, devid)

    def row(name: str, divisor: int, op: str, dev: int = plain_device, **parameters: Any) -> Measured:
        entry = Row(name)

        def measure(count: int, recorder: LatencyRecorder) -> None:
            # Awake first: the backend's spin budget may have passed since its last turn.
            if "idle" not in parameters:
                guest.request(op, dev=dev, count=min(count, 10), **parameters)
            answer = guest.request(op, dev=dev, count=count, **parameters)
            entry.accesses = answer.get("accesses", 1)
            recorder.merge(decoded(answer))

        return Measured(entry, divisor, measure)

    plain = {"offset": device.PLAIN_OFFSET, "size": 4}
    yield row("config.get", 1, "measure_config_get", **plain)
    yield row("config.get.256", 1, "measure_config_get", offset=device.PLAIN_OFFSET, size=256)
    yield row("config.set.python", 2, "measure_config_set", offset=device.SET_OFFSET, data="01000000")
    yield row("config.get.python", 2, "measure_config_get", offset=device.COMPUTED_OFFSET, size=4)
    yield row("config.get.asleep", 100, "measure_config_get", **plain, idle=True)
    yield row("probe.blk", 1000, "measure_probe", dev=blk)
    if site.machine.name.kind == "xen":
        yield row("probe.blk.burst", 1000, "measure_burst", dev=blk)
        yield row("probe.blk.reads", 20, "measure_burst", dev=blk, reads=True)
    yield row("blk.read.4k", 20, "measure_blk_read", dev=blk)
