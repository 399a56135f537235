"""One run of the bench of a domU's kernel: stock virtio drivers over virtio_msg_xen, and Xen's own drivers beside them.

All on one file of this domain and one bridge, in rounds.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cpp_ring import LatencyRecorder, pin_thread
from emulator.bench import keyboard
from emulator.bench.rows import LIMIT, Row
from emulator.bench.run import Measured, Result, take_turns
from emulator.bench.xen_drivers import MINORS, XVDA, blkback, command, netback, qdisk
from emulator.bench.xen_peers import XenPeers
from emulator.bench.xen_site import XenSite, open_xen_site, xen_machine_line
from emulator.cpus import allowed
from emulator.exit_codes import Failure
from emulator.guest_process import GuestFailed, GuestProcess, decoded
from emulator.poll import format_poll

COUNT: Final = 2000
"""Samples of a row by default: of requests at depth 1; the others take fewer."""
BUDGET: Final = 240.0
"""Seconds of rounds."""
DISK_BYTES: Final = 64 << 20
DEPTHS: Final = (1, 16)
PROBES: Final = 10
AWAKE_US: Final = 10_000
"""How long both sides spin: longer than either needs in software emulation."""
STREAM_BYTES: Final = 4 << 20
XVDB, XVDC = XVDA + MINORS, XVDA + 2 * MINORS
VIF: Final = 1
BRIDGE, TAP = "vdm-bench", "vdm-bench-tap"
NET: Final = "10.247.{}.{}"
OURS_MAC, VIF_MAC = "02:76:64:6d:00:01", "02:76:64:6d:00:02"


@dataclass(frozen=True, slots=True)
class Disk:
    prefix: str
    path: str


@dataclass(frozen=True, slots=True)
class Card:
    prefix: str
    host: str


def run(
    domid: int,
    guest_command: Sequence[str],
    module: str,
    poll_us: float | None,
    count: int,
    progress: Callable[[float, str], None],
) -> Result:
    """`module`: the file in domain `domid` that has virtio_msg_xen.ko. `poll_us`: of the emulator that serves its disk
    and its card, if not the default. Raises as emulator.bench.xen_run.run.
    """
    cpu = allowed()[0]
    with contextlib.ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
        pin_thread(cpu)
        site = stack.enter_context(open_xen_site(domid, guest_command, cpu))
        guest = stack.enter_context(site.first_guest(domid))
        about = guest.request("about")
        guest.request("kernel_without", paths=["/sys/module/virtio_msg_xen", "/dev/vda", "/dev/xvdb", "/dev/xvdc"])
        guest.request(
            "kernel_modules", names=["virtio_blk", "virtio_net", "virtio_input", "xen-blkfront", "xen-netfront"]
        )
        rows = {row.name: row for row in _exchanges(site, domid, guest, module, count, progress)}
        with contextlib.ExitStack() as serving:
            table = list(_requests(site, domid, guest, module, poll_us, serving))
            take_turns(table, count, progress, BUDGET)
        rows |= {entry.row.name: entry.row for entry in table}
    polling = "default" if poll_us is None else format_poll(poll_us)
    return Result(xen_machine_line(site, about) | {"poll-us": polling}, rows)


def _exchanges(
    site: XenSite, domid: int, guest: GuestProcess, module: str, count: int, progress: Callable[[float, str], None]
) -> Iterator[Row]:
    """The module's own round trips, and how long it takes to a disk."""
    spec = f"{Path(keyboard.__file__).resolve()}:Keyboard"
    for how, spin_us in (("awake", AWAKE_US), ("asleep", 0)):
        row = Row(f"guest.config.get.{how}")
        progress(0.0, row.name)
        devid = site.attach(domid, spec)
        with site.emulator(domid, poll_us=spin_us) as process:
            site.await_backend(process, domid, devid)
            guest.request("kernel_load", module=module, parameters=[f"spin_us={spin_us}"])
            try:
                answer = guest.request("measure_module_config", driver="virtio_input", count=min(count, 500))
            finally:
                _unload(guest)
            row.recorder.merge(decoded(answer))
        site.detach()
        yield row
    row = Row("guest.probe")
    progress(0.0, row.name)
    with _served(site, domid, f"blk,path={_disk(site)}"):
        answer = guest.request(
            "measure_module_probe", module=module, path="/dev/vda", count=max(1, min(PROBES, count // 100))
        )
        row.recorder.merge(decoded(answer))
    site.detach()
    yield row


def _requests(
    site: XenSite,
    domid: int,
    guest: GuestProcess,
    module: str,
    poll_us: float | None,
    stack: contextlib.ExitStack,
) -> Iterator[Measured]:
    peers = XenPeers(site.machine, domid, guest, site.server_cpu)
    yield Measured(Row(LIMIT), 1, stack.enter_context(peers.page()).measure)
    disk = _disk(site)
    stack.enter_context(_bridge())
    card = f"net,tap={TAP},mac={OURS_MAC}"
    stack.enter_context(_served(site, domid, f"blk,path={disk}", card, poll_us=poll_us))
    guest.request("kernel_load", module=module)
    stack.callback(_unload, guest)
    disks = [Disk("guest", "/dev/vda")]
    stack.enter_context(blkback(site.store, domid, XVDB, disk))
    disks.append(Disk("peer.blkback", "/dev/xvdb"))
    if stack.enter_context(qdisk(site.store, domid, XVDC, disk)):
        disks.append(Disk("peer.qdisk", "/dev/xvdc"))
    stack.enter_context(netback(site.store, domid, VIF, VIF_MAC, BRIDGE))
    cards = []
    for number, (prefix, mac) in enumerate((("guest", OURS_MAC), ("peer.netback", VIF_MAC))):
        host = NET.format(number, 1)
        guest.request("kernel_address", mac=mac, address=NET.format(number, 2) + "/24")
        cards.append(Card(prefix, host))
    for each in disks:
        guest.request("kernel_wait", path=each.path)
    yield from _disk_rows(guest, disks)
    yield from _net_rows(guest, cards, stack)


def _disk_rows(guest: GuestProcess, disks: Sequence[Disk]) -> Iterator[Measured]:
    """Rows that are to be compared come one after the other."""
    for depth in DEPTHS:
        divisor = 1 if depth == 1 else 2
        for write in (False, True):
            name = f"{'write' if write else 'read'}.4k.d{depth}"
            for disk in disks:
                row = Row(f"{disk.prefix}.{name}")
                yield Measured(row, divisor, _latency(guest, "disk", path=disk.path, depth=depth, write=write))
        for disk in disks:
            row = Row(f"{disk.prefix}.flush.d{depth}")
            yield Measured(row, 4, _latency(guest, "flush", path=disk.path, depth=depth))
    for write in (False, True):
        for disk in disks:
            row = Row(f"{disk.prefix}.{'write' if write else 'read'}.64k", "B/s")
            how = {"path": disk.path, "write": write, "sequential": True}
            yield Measured(row, 4, _rate(guest, size=65536, **how))


def _net_rows(guest: GuestProcess, cards: Sequence[Card], stack: contextlib.ExitStack) -> Iterator[Measured]:
    ports = {card.host: stack.enter_context(_tcp_server(card.host)) for card in cards}
    for card in cards:
        row = Row(f"{card.prefix}.tcp.rr")
        yield Measured(row, 2, _latency(guest, "tcp_rr", host=card.host, port=ports[card.host][0]))
    for card in cards:
        row = Row(f"{card.prefix}.tcp.stream", "B/s")
        where = {"host": card.host, "port": ports[card.host][1]}

        def stream(count: int, recorder: LatencyRecorder, where: dict[str, Any] = where) -> None:
            size = STREAM_BYTES * count // 100
            recorder.record(size * 10**9 // guest.request("measure_tcp_stream", size=size, **where)["ns"])

        yield Measured(row, 2, stream)


def _latency(guest: GuestProcess, op: str, **parameters: Any) -> Callable[[int, LatencyRecorder], None]:
    def measure(count: int, recorder: LatencyRecorder) -> None:
        recorder.merge(guest.measure(f"measure_{op}", count=count, **parameters))

    return measure


def _rate(guest: GuestProcess, size: int, **parameters: Any) -> Callable[[int, LatencyRecorder], None]:
    """Bytes in a second, once a round."""

    def measure(count: int, recorder: LatencyRecorder) -> None:
        ns = guest.request("measure_disk", count=count, size=size, **parameters)["ns"]
        recorder.record(count * size * 10**9 // ns)

    return measure


def _unload(guest: GuestProcess) -> None:
    """What else went wrong is of more interest than that this does not work either."""
    with contextlib.suppress(GuestFailed):
        guest.request("kernel_unload")


def _disk(site: XenSite) -> Path:
    path = site.directory / "disk.img"
    if not path.exists():
        path.write_bytes(os.urandom(1 << 20) * (DISK_BYTES >> 20))
    return path


@contextlib.contextmanager
def _served(site: XenSite, domid: int, *specs: str, poll_us: float | None = None) -> Iterator[None]:
    devids = [site.attach(domid, spec) for spec in specs]
    with site.emulator(domid, poll_us) as process:
        for devid in devids:
            site.await_backend(process, domid, devid)
        yield


@contextlib.contextmanager
def _bridge() -> Iterator[None]:
    """A bridge with our tap on it, and an address of ours for each card."""
    with contextlib.ExitStack() as stack:
        command("ip", "link", "add", BRIDGE, "type", "bridge")
        stack.callback(_delete_link, BRIDGE)
        command("ip", "tuntap", "add", "dev", TAP, "mode", "tap")
        stack.callback(_delete_link, TAP)
        command("ip", "link", "set", TAP, "master", BRIDGE, "up")
        for number in range(2):
            command("ip", "addr", "add", NET.format(number, 1) + "/24", "dev", BRIDGE)
        command("ip", "link", "set", BRIDGE, "up")
        yield


def _delete_link(name: str) -> None:
    with contextlib.suppress(Failure):  # something else went wrong, and is of more interest
        command("ip", "link", "del", name)


@contextlib.contextmanager
def _tcp_server(host: str) -> Iterator[tuple[int, int]]:
    """Ports of an echo and of a sink."""
    with socket.create_server((host, 0)) as echo, socket.create_server((host, 0)) as sink:
        for server, serve in ((echo, _echo), (sink, _sink)):
            threading.Thread(target=_accept, args=(server, serve), daemon=True).start()
        try:
            yield echo.getsockname()[1], sink.getsockname()[1]
        finally:
            for server in (echo, sink):
                server.shutdown(socket.SHUT_RDWR)  # ends accept


def _accept(server: socket.socket, serve: Callable[[socket.socket], None]) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = server.accept()
            with connection, contextlib.suppress(ConnectionError):
                serve(connection)


def _echo(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while data := connection.recv(64):
        connection.sendall(data)


def _sink(connection: socket.socket) -> None:
    buffer = bytearray(1 << 18)
    while connection.recv_into(buffer):
        pass
