"""One run of the bench on Xen: the rows of the local one where they make sense, and what Xen itself has."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence

from cpp_ring import pin_thread
from emulator.bench.rows import LIMIT, Row
from emulator.bench.run import Measured, Result, config_rows, take_turns
from emulator.bench.site import measure_pss, measure_start
from emulator.bench.xen_peers import XenPeers
from emulator.bench.xen_site import XenSite, open_xen_site, xen_machine_line
from emulator.cpus import allowed
from emulator.guest_process import GuestProcess

COUNT = 20_000
"""Samples of each fast row, by default: few, as there may be a hundred times slower machines below."""
STARTS = 4
BUDGET = 40.0
"""Seconds of rounds: a machine in software emulation that others use too takes minutes for one. STARTS and BUDGET are
for COUNT samples, and less for less."""


def run(domid: int, guest_command: Sequence[str], count: int, progress: Callable[[float, str], None]) -> Result:
    """As emulator.bench.run.run, between this domain and domain `domid`, where `guest_command` starts the guest.

    Raises besides: StoreError.
    """
    share = min(1.0, count / COUNT)
    cpu = allowed()[0]
    with contextlib.ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
        pin_thread(cpu)
        site = stack.enter_context(open_xen_site(domid, guest_command, cpu))
        with contextlib.ExitStack() as serving:
            guest = serving.enter_context(site.first_guest(domid))
            about = guest.request("about")
            table = list(_measured(site, domid, guest, serving))
            take_turns(table, count, progress, BUDGET * share)
        rows = {entry.row.name: entry.row for entry in table}
        site.detach()
        start, pss = Row("emulator.start"), Row("emulator.pss", "bytes")
        progress(0.8, start.name)
        measure_start(site, domid, max(1, int(STARTS * share)), start.recorder)
        progress(0.9, pss.name)
        measure_pss(site, [domid], pss.recorder)
    return Result(xen_machine_line(site, about), rows | {start.name: start, pss.name: pss})


def _measured(site: XenSite, domid: int, guest: GuestProcess, stack: contextlib.ExitStack) -> Iterator[Measured]:
    peers = XenPeers(site.machine, domid, guest, site.server_cpu)
    yield Measured(Row(LIMIT), 1, stack.enter_context(peers.page()).measure)
    yield from config_rows(site, domid, guest, stack)
    yield Measured(Row("peer.evtchn"), 100, stack.enter_context(peers.events()).measure)
    vchan = stack.enter_context(peers.vchan())
    if vchan is not None:
        yield Measured(Row("peer.xenvchan.awake"), 40, vchan[0].measure)
        yield Measured(Row("peer.xenvchan.asleep"), 100, vchan[1].measure)
