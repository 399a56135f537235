"""A local machine, and `virtio-dm` processes on it, each test with a domain of its own."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cpp_ring.store import Store, StoreError
from emulator import local
from emulator.store_paths import State, backend_dir, backends_dir, frontend_dir
from guest.hypervisor import Domain, open_local
from tests import forked

PATIENCE = 30.0
MODELS = Path(__file__).parent / "models.py"


class Process:
    """A `virtio-dm` command that runs, and the lines it writes to standard error."""

    patience = PATIENCE

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self._stderr, stderr = forked.pipe()
        with stderr:
            self._process = forked.Fork(arguments, environment or {}, errors=stderr)
        self.lines: list[str] = []
        self._changed = threading.Condition()
        # A daemon: one that a failed test leaves keeps nobody from ending.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def await_line(self, text: str, count: int = 1) -> str:
        """The `count`-th line that contains `text`, once it is there."""

        def found() -> list[str]:
            return [line for line in self.lines if text in line][count - 1 : count]

        with self._changed:
            assert self._changed.wait_for(found, self.patience), f"no line {text!r} in {self.lines}"
            return found()[0]

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """Its exit code."""
        code = self._process.wait(self.patience)
        self._reader.join(self.patience)
        return code

    def stop(self) -> int:
        """SIGTERM, and its exit code. Idempotent. One that does not end is killed, to be in no other test's way."""
        if self._process.poll() is None:
            self.signal(signal.SIGTERM)
            self.signal(signal.SIGCONT)  # of a test that failed before it did that itself
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGABRT)  # it says what its threads do, see tests.forked
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.wait()
            print("\n".join(self.lines))
            self.kill()
            raise

    def kill(self) -> None:
        self._process.kill()
        self.wait()

    def _read(self) -> None:
        with self._stderr as lines:
            for line in lines:
                with self._changed:
                    self.lines.append(line.rstrip("\n"))
                    self._changed.notify_all()


class Machine:
    """Machine "t". `domid`: the domain of the test that runs."""

    name = "local:t"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store = Store.open(directory / "dom0" / "xenstored")
        self.domid = 0
        self._started: list[Process] = []

    def new_domain(self) -> int:
        self.domid += 1
        local.create_domain("t", self.domid)
        return self.domid

    def end_test(self) -> None:
        """Everything that the test started ends."""
        for process in self._started:
            if process.stop() != 0:
                process.kill()
        self._started.clear()
        for domid in local.domains("t")[1:]:
            local.destroy_domain("t", domid)
            self.remove(backends_dir(0, domid))

    def remove(self, path: str) -> None:
        with contextlib.suppress(StoreError):  # it is not there
            self.store.rm(path)

    def start(self, *arguments: str, environment: dict[str, str] | None = None) -> Process:
        """A command in the background."""
        process = Process(*arguments, "--hypervisor", self.name, environment=environment)
        self._started.append(process)
        return process

    def run(self, *specs: str, domid: int = 0, options: tuple[str, ...] = ()) -> Process:
        """An emulator of the test's domain, once it serves."""
        devices = [part for spec in specs for part in ("--device", spec)]
        process = self.start("run", "--domid", str(domid or self.domid), *devices, *options)
        process.await_line("serving domain")
        for devid in range(len(specs)):
            self.await_state(State.INIT_WAIT, devid, domid=domid)
        return process

    def command(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """A command that ends by itself, with that exit code."""
        done = forked.run([*arguments, "--hypervisor", self.name], PATIENCE)
        assert done.returncode == code, done.stderr
        return done

    def attach(self, spec: str) -> int:
        return int(self.command("attach", str(self.domid), spec).stdout)

    def domain(self, domid: int = 0) -> Domain:
        """The test's domain, for drivers."""
        return open_local(self.directory, domid or self.domid)

    def node(self, name: str, devid: int = 0, domid: int = 0) -> str | None:
        """A node of the backend's directory."""
        return self.store.read_optional(f"{backend_dir(0, domid or self.domid, devid)}/{name}")

    def frontend_store(self) -> Store:
        """The store as the test's domain sees it."""
        return Store.open(self.directory / f"dom{self.domid}" / "xenstored")

    def frontend_path(self, devid: int = 0) -> str:
        return frontend_dir(self.domid, devid)

    def until(self, condition: Callable[[], bool], path: str = "") -> None:
        """Waits for something that a change below `path`, by default in the store, brings about."""
        path = path or "/local/domain"
        self.store.watch(path, "until")
        try:
            deadline = time.monotonic() + PATIENCE
            while not condition():
                assert time.monotonic() < deadline, f"{condition} did not come true"
                self.store.next_event(1.0)
        finally:
            self.store.unwatch(path, "until")

    def await_state(self, state: State, devid: int = 0, domid: int = 0) -> None:
        """Waits for a state of the backend."""
        self.until(lambda: self.node("state", devid, domid) == str(int(state)))

    def await_removal(self, devid: int = 0) -> None:
        self.until(lambda: self.node("frontend-id", devid) is None)


@pytest.fixture(scope="module")
def whole_machine() -> Iterator[Machine]:
    with tempfile.TemporaryDirectory(prefix="vdm-") as base, pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIRTIO_DM_RUNTIME_DIR", base)
        patch.setenv("COLUMNS", "200")
        directory = local.ensure_broker("t")
        for domid in local.domains("t")[1:]:
            local.destroy_domain("t", domid)
        machine = Machine(directory)
        yield machine
        machine.store.close()
        local.stop("t")


@pytest.fixture
def machine(whole_machine: Machine) -> Iterator[Machine]:
    """The module's machine, with a fresh domain; processes and domains end with the test."""
    whole_machine.new_domain()
    yield whole_machine
    whole_machine.end_test()
