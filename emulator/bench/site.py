"""Where the bench runs: a machine, its backends on a core of their own; here a local one in a temporary directory."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cpp_ring import LatencyRecorder
from cpp_ring.store import Store
from emulator import local, toolstack
from emulator.bench.errors import ProcessFailed
from emulator.child import die_with_parent
from emulator.exit_codes import ExitCode, Failure
from emulator.guest_process import GuestProcess
from emulator.machine import Machine, open_machine, parse_hypervisor
from emulator.poll import format_poll
from emulator.spec import parse
from emulator.store_paths import State, backend_dir

START_SECONDS = 20.0
MACHINE = "bench"
HYPERVISOR = f"local:{MACHINE}"


class Site:
    """A machine with one core for backends and one for everything that waits for them."""

    def __init__(
        self,
        machine: Machine,
        store: Store,
        directory: Path,
        server_cpu: int,
        client_cpu: int,
        guest_command: Sequence[str] | None = None,
    ) -> None:
        """`client_cpu`: of the guest's own CPUs. `guest_command`: see GuestProcess."""
        self.machine = machine
        self.store = store
        self.guest_command = guest_command
        self.directory = directory
        self.server_cpu = server_cpu
        self.client_cpu = client_cpu

    def attach(self, domid: int, spec: str) -> int:
        return toolstack.attach(self.store, self.machine.backend, domid, parse(spec))

    @contextlib.contextmanager
    def emulator(self, domid: int, poll_us: float | None = None) -> Iterator[subprocess.Popen[bytes]]:
        """A running `virtio-dm run` for the domain; terminated at the end. `poll_us`: if not the default."""
        polling = [] if poll_us is None else ["--poll-us", format_poll(poll_us)]
        with self._log(domid).open("ab") as log:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "emulator",
                    "run",
                    "--domid",
                    str(domid),
                    "--hypervisor",
                    str(self.machine.name),
                    *polling,
                ],
                stdin=subprocess.DEVNULL,
                stderr=log,
                preexec_fn=die_with_parent(),
            )
        # Before it has threads; they inherit it.
        os.sched_setaffinity(process.pid, {self.server_cpu})
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _log(self, domid: int) -> Path:
        return self.directory / f"emulator-{domid}.log"

    def guest(self, domid: int) -> GuestProcess:
        return GuestProcess(str(self.machine.name), domid, cpu=self.client_cpu, command=self.guest_command)

    def await_backend(self, process: subprocess.Popen[bytes], domid: int, devid: int) -> None:
        """Returns once the emulator offers the device. Raises TimeoutError, ProcessFailed."""
        path = backend_dir(self.machine.backend, domid, devid) + "/state"
        deadline = time.monotonic() + START_SECONDS
        while self.store.read_optional(path) != str(int(State.INIT_WAIT)):
            if process.poll() is not None:
                said = self._log(domid).read_text().strip().rpartition("\n")[2]
                raise ProcessFailed(f"the emulator of domain {domid} ended with code {process.returncode}: {said}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"the emulator of domain {domid} was not ready in {START_SECONDS:g} s")
            time.sleep(0.005)


@contextlib.contextmanager
def open_site(server_cpu: int, client_cpu: int) -> Iterator[Site]:
    """Makes the machine; stops its broker and removes every trace at the end."""
    before = os.environ.get("VIRTIO_DM_RUNTIME_DIR")
    with tempfile.TemporaryDirectory(prefix="virtio-dm-") as name:
        # Read by the broker, the emulators and the guests, all of them children of ours.
        os.environ["VIRTIO_DM_RUNTIME_DIR"] = name
        try:
            with _broker():
                machine = open_machine(parse_hypervisor(HYPERVISOR))
                with machine.open_store() as store:
                    yield Site(machine, store, Path(name), server_cpu, client_cpu)
        finally:
            if before is None:
                del os.environ["VIRTIO_DM_RUNTIME_DIR"]
            else:
                os.environ["VIRTIO_DM_RUNTIME_DIR"] = before


@contextlib.contextmanager
def _broker() -> Iterator[None]:
    """Started as a child, not on demand, so that it cannot outlive a bench that is killed. Raises ProcessFailed."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "emulator", "local", MACHINE],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,  # Ctrl-C is for us, who end it last
        preexec_fn=die_with_parent(),
    )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not local.running(MACHINE):
            if process.poll() is not None or time.monotonic() > deadline:
                raise ProcessFailed("the local machine of the bench did not start; `virtio-dm local` says why")
            time.sleep(0.005)
        yield
    finally:
        process.terminate()
        process.wait()


def measure_start(site: Site, domid: int, count: int, recorder: LatencyRecorder) -> None:
    """From the start of the emulator's process to the end of a guest's first probe, `count` times."""
    devid = site.attach(domid, "rng")
    with site.guest(domid) as guest:
        for _ in range(count):
            start = time.perf_counter_ns()
            with site.emulator(domid) as process:
                site.await_backend(process, domid, devid)
                guest.request("connect", dev=devid)
                recorder.record(time.perf_counter_ns() - start)
                guest.request("close", dev=devid)


def create_domains(domids: Iterable[int]) -> None:
    """Those of the local machine that are not there."""
    for domid in domids:
        if domid not in local.domains(MACHINE):
            local.create_domain(MACHINE, domid)


def measure_pss(site: Site, domids: Iterable[int], recorder: LatencyRecorder) -> None:
    """Proportional set size in bytes of each emulator, all of `domids` running at once with an entropy device."""
    with contextlib.ExitStack() as running:
        processes = []
        for domid in domids:
            devid = site.attach(domid, "rng")
            process = running.enter_context(site.emulator(domid))
            processes.append((process, domid, devid))
        for process, domid, devid in processes:
            site.await_backend(process, domid, devid)
        for process, _, _ in processes:
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            found = re.search(r"^Pss:\s+(\d+) kB$", rollup, re.MULTILINE)
            if found is None:
                raise Failure(ExitCode.UNFIT_MACHINE, "the kernel gives no Pss in smaps_rollup")
            recorder.record(int(found[1]) * 1024)
