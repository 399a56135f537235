"""What the demo plays on: a local machine of its own with a supervisor and guests, all in one temporary directory."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

from cpp_ring.store import Store
from emulator import local, lock, models, toolstack
from emulator.child import die_with_parent
from emulator.demo.interrupts import Interrupts
from emulator.exit_codes import ExitCode, Failure
from emulator.guest_process import GuestProcess
from emulator.machine import HypervisorName, Machine, open_machine
from emulator.spec import Spec

MACHINE: Final = HypervisorName("local", "demo")
DOMAINS: Final = (1, 2)
START_SECONDS: Final = 20.0
STOP_SECONDS: Final = 15.0
LONGEST_DIRECTORY: Final = 70
"""Bytes of the temporary directory's path; longer ones leave no room for the names of sockets."""

_RUNTIME: Final = "VIRTIO_DM_RUNTIME_DIR"


class Stage:
    """Open it with `open_stage`. Everything that is started here is ended there."""

    machine: Machine
    store: Store

    def __init__(self, directory: Path, interrupts: Interrupts, ending: contextlib.ExitStack) -> None:
        self.directory = directory
        self.guests: dict[int, GuestProcess] = {}
        self._interrupts = interrupts
        self._ending = ending
        self._log = directory / "log"

    def start_machine(self) -> None:
        """The broker, with DOMAINS. Raises Failure."""
        broker = self._start("local", MACHINE.machine, "--domains", str(len(DOMAINS)))
        self._await(lambda: local.running(MACHINE.machine), broker, "the broker")
        self.machine = open_machine(MACHINE)
        self.store = self._ending.enter_context(self.machine.open_store())

    def start_supervisor(self) -> int:
        """Its process id. Raises Failure."""
        for domid in DOMAINS:
            self._ending.callback(self._kill_emulator, domid)  # should the supervisor leave one
        supervisor = self._start("supervise", "--hypervisor", str(MACHINE))
        path = lock.supervisor_lock(self.machine.directory)
        self._await(lambda: lock.holder(path) == supervisor.pid, supervisor, "the supervisor")
        return supervisor.pid

    def start_guest(self, domid: int) -> GuestProcess:
        """The domain's only one."""
        with self._interrupts.held():
            guest = self.guests[domid] = self._ending.enter_context(GuestProcess(str(MACHINE), domid))
        return guest

    def attach(self, domid: int, model: str, **options: object) -> int:
        """As `virtio-dm attach`; returns the number of the device, which is ready. Raises Failure."""
        spec = models.validate(Spec(model, tuple((key, str(value)) for key, value in options.items())))
        devid = toolstack.attach(self.store, self.machine.backend, domid, spec)
        if not toolstack.await_ready(self.machine, self.store, domid, devid):
            raise Failure(ExitCode.INTERNAL, "the supervisor ended")
        return devid

    def start_update(self, domid: int, devid: int, **changes: object) -> subprocess.Popen[bytes]:
        """`virtio-dm update`, beside us."""
        pairs = [f"{key}={value}" for key, value in changes.items()]
        return self._start("update", str(domid), str(devid), *pairs, "--hypervisor", str(MACHINE))

    def emulator_pid(self, domid: int) -> int:
        """Raises Failure if the domain has no emulator."""
        pid = toolstack.emulator_pid(self.machine, domid)
        if pid is None:
            raise Failure(ExitCode.INTERNAL, f"domain {domid} has no emulator")
        return pid

    def close(self) -> None:
        """Ends what was started and removes the directory. A signal waits for that. Idempotent."""
        self._interrupts.hold()
        self._ending.close()

    def last_words(self, lines: int = 12) -> list[str]:
        """The end of what broker, supervisor and emulators logged."""
        with contextlib.suppress(OSError):
            return self._log.read_text(errors="replace").splitlines()[-lines:]
        return []

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with self._interrupts.held(), self._log.open("ab") as log:
            process = _spawn(arguments, log)
            self._ending.callback(_stop, process)
        return process

    def _await(self, condition: Callable[[], bool], process: subprocess.Popen[bytes], what: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not condition():
            if process.poll() is not None:
                raise Failure(ExitCode.INTERNAL, f"{what} ended with exit code {process.returncode}")
            if time.monotonic() > deadline:
                raise Failure(ExitCode.TIMED_OUT, f"{what} was not ready in {START_SECONDS:g} s")
            time.sleep(0.01)

    def _kill_emulator(self, domid: int) -> None:
        pid = toolstack.emulator_pid(self.machine, domid)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def open_stage(interrupts: Interrupts) -> Iterator[Stage]:
    """An empty stage; at the end nothing of it is left, no process and no file. Raises Failure."""
    with contextlib.ExitStack() as ending:
        with interrupts.held():
            name = ending.enter_context(tempfile.TemporaryDirectory(prefix="virtio-dm-demo-"))
        if len(os.fsencode(name)) > LONGEST_DIRECTORY:
            raise Failure(ExitCode.USAGE, f"{name} is too long a path for sockets; set TMPDIR to a shorter one")
        ending.enter_context(_runtime_directory(Path(name, "run")))
        stage = Stage(Path(name), interrupts, ending)
        try:
            yield stage
        finally:
            stage.close()


@contextlib.contextmanager
def _runtime_directory(directory: Path) -> Iterator[None]:
    """Where we and every process we start look for machines, so that the user's are out of reach."""
    before = os.environ.get(_RUNTIME)
    os.environ[_RUNTIME] = str(directory)
    try:
        yield
    finally:
        del os.environ[_RUNTIME]
        if before is not None:
            os.environ[_RUNTIME] = before


def _spawn(arguments: tuple[str, ...], log: IO[bytes]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "emulator", *arguments]
    # In a process group of its own: Ctrl-C is for us, who stop everything in order.
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0, preexec_fn=die_with_parent()
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
