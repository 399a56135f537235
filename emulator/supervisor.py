"""`virtio-dm supervise`: one emulator process for each domain that has devices."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import emulator
from cpp_ring.store import Store, StoreError
from emulator import lock, systemd
from emulator.backend_nodes import remove_domain
from emulator.child import die_with_parent
from emulator.exit_codes import ExitCode, Failure
from emulator.loop import EventLoop, Timer
from emulator.machine import HypervisorName, Machine, is_there, open_machine
from emulator.process import DRAIN_SECONDS, STOP_SIGNALS
from emulator.store_paths import all_backends_dir, children
from emulator.xenbus_device import STORE_GONE

FIRST_DELAY: Final = 0.05
LONGEST_DELAY: Final = 10.0
HEALTHY_SECONDS: Final = 10.0
KILL_SECONDS: Final = DRAIN_SECONDS + 2.0

log = logging.getLogger("virtio-dm supervise")


def supervise(name: HypervisorName, arguments: tuple[str, ...] = ()) -> ExitCode:
    """Runs until a signal. `arguments`: further ones for each `virtio-dm run`. Raises Failure, StoreError."""
    machine = open_machine(name)
    with machine.open_store() as store:
        held = lock.take(lock.supervisor_lock(machine.directory), f"supervises {machine.name}")
        try:
            return Supervisor(machine, store, arguments).run()
        finally:
            os.close(held)


class Supervisor:
    """Starts, restarts with back-off, and stops. Never waits for a child but in its event loop."""

    def __init__(self, machine: Machine, store: Store, arguments: tuple[str, ...]) -> None:
        self._machine = machine
        self._store = store
        self._arguments = arguments
        self._loop = EventLoop()
        self._root = all_backends_dir(machine.backend)
        self._children: dict[int, Child] = {}
        self._die_with_us = die_with_parent()
        self._stopping = 0

    def run(self) -> ExitCode:
        with self._loop.signals(self._signalled, *STOP_SIGNALS):
            for path in (self._root, "@introduceDomain", "@releaseDomain"):
                self._store.watch(path, path)
            self._loop.watch(self._store.fileno(), lambda: None)  # `_take_events` comes before each sleep
            self._loop.before_sleep(self._take_events)
            self._watchdog()
            log.info("watching the domains of %s", self._machine.name)
            systemd.notify("READY=1")
            try:
                self._loop.run()
            except StoreError as error:
                raise Failure(ExitCode.HYPERVISOR_LOST, self._machine.store_gone(error)) from error
            finally:
                for child in self._children.values():
                    child.kill()  # only when something went wrong here
        self._loop.close()
        return ExitCode.FORCED if self._stopping > 1 else ExitCode.OK

    def start(self, domid: int) -> subprocess.Popen[bytes]:
        """A new emulator for a domain; it ends with us, however we end."""
        command = [sys.executable, "-P", "-m", "emulator", "run", "--domid", str(domid)]
        command += ["--hypervisor", str(self._machine.name), *self._arguments]
        environment = {key: value for key, value in os.environ.items() if key not in _OUR_OWN}
        search = [part for part in environment.get("PYTHONPATH", "").split(os.pathsep) if part]
        environment["PYTHONPATH"] = os.pathsep.join([*search, str(Path(emulator.__file__).parent.parent)])
        # In a process group of its own: Ctrl-C is for us, who pass it on in order.
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, env=environment, process_group=0, preexec_fn=self._die_with_us
        )

    def served_by_other(self, domid: int) -> int | None:
        return lock.holder(lock.emulator_lock(self._machine.domain_directory(domid)))

    def ended(self, domid: int) -> None:
        """A child that is not wanted any more has ended."""
        del self._children[domid]
        if not self._stopping:
            self._compare()  # the domain may have devices again
        elif not self._children:
            self._loop.stop()

    def _take_events(self) -> bool:
        events = self._store.events()
        if not self._stopping and any(self._matters(path, token) for path, token in events):
            self._compare()
        return bool(events)

    def _matters(self, path: str, token: str) -> bool:
        """Not what emulators write into the directories of devices that are known."""
        if token != self._root:
            return True
        domid, _, rest = path.removeprefix(self._root).strip("/").partition("/")
        return "/" not in rest or not domid.isdecimal() or int(domid) not in self._children

    def _compare(self) -> None:
        """Starts and stops what the store says. Raises StoreError only when the store is gone."""
        try:
            self._start_and_stop()
        except StoreError as error:
            if error.errno in STORE_GONE:
                raise
            log.error("the store refused: %s", error)

    def _start_and_stop(self) -> None:
        wanted = {domid for domid in self._domains() if children(self._store, f"{self._root}/{domid}")}
        for domid in wanted - set(self._children):
            self._children[domid] = Child(self, self._loop, domid)
        for domid, child in list(self._children.items()):
            child.want(domid in wanted)

    def _domains(self) -> list[int]:
        """Those that are there and may have devices. What is left of others is removed, unless an emulator is at it."""
        alive = []
        for name in children(self._store, self._root):
            if not (name.isdecimal() and len(name) < 6):
                continue
            domid = int(name)
            if is_there(self._store, domid):
                alive.append(domid)
            elif domid not in self._children and not self.served_by_other(domid):
                remove_domain(self._store, self._machine.backend, domid)
        return alive

    def _signalled(self, number: int) -> None:
        self._stopping += 1
        force = self._stopping > 1
        self._loop.post(lambda: self._stop(signal.Signals(number).name, force))

    def _stop(self, reason: str, force: bool) -> None:
        log.info("stopping%s: %s", " at once" if force else "", reason)
        systemd.notify("STOPPING=1")
        for child in list(self._children.values()):
            if force:
                child.kill()
            child.want(False)
        if not self._children:
            self._loop.stop()

    def _watchdog(self) -> None:
        if period := systemd.watchdog_period():
            systemd.notify("WATCHDOG=1")
            self._loop.call_later(period, self._watchdog)


class Child:
    """The emulator of one domain, as long as it is wanted."""

    def __init__(self, supervisor: Supervisor, loop: EventLoop, domid: int) -> None:
        self._supervisor = supervisor
        self._loop = loop
        self._domid = domid
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._started = 0.0
        self._delay = FIRST_DELAY
        self._timer: Timer | None = None
        self._wanted = True
        self._start()

    def want(self, wanted: bool) -> None:
        """Whether the domain has devices. A child that is not wanted is stopped in order, then killed."""
        if wanted == self._wanted:
            return
        self._wanted = wanted
        if wanted:
            return  # it is ending; its end starts the next one
        if self._process is None:
            self._cancel()
            self._loop.post(lambda: self._supervisor.ended(self._domid))
        else:
            log.info("domain %d: stopping emulator %d", self._domid, self._process.pid)
            self._process.send_signal(signal.SIGTERM)
            self._timer = self._loop.call_later(KILL_SECONDS, self.kill)

    def kill(self) -> None:
        if self._process is not None:
            log.warning("domain %d: killing emulator %d", self._domid, self._process.pid)
            self._process.kill()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _start(self) -> None:
        if pid := self._supervisor.served_by_other(self._domid):
            self._retry(f"is served by process {pid} already; looking again")
            return
        try:
            self._process = self._supervisor.start(self._domid)
        except OSError as error:
            self._retry(f"cannot start an emulator ({error}); trying again")
            return
        self._started = time.monotonic()
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop.watch(self._pidfd, self._ended)
        log.info("domain %d: emulator %d started", self._domid, self._process.pid)

    def _ended(self) -> None:
        process, self._process = self._process, None
        assert process is not None
        self._loop.unwatch(self._pidfd)
        os.close(self._pidfd)
        self._cancel()
        how = _describe(process.wait())
        if not self._wanted:
            log.info("domain %d: emulator %d ended (%s)", self._domid, process.pid, how)
            self._supervisor.ended(self._domid)
            return
        if time.monotonic() - self._started >= HEALTHY_SECONDS:
            self._delay = FIRST_DELAY
        self._retry(f"emulator {process.pid} ended ({how}); starting another")

    def _retry(self, why: str) -> None:
        log.warning("domain %d: %s in %g s", self._domid, why, self._delay)
        self._timer = self._loop.call_later(self._delay, self._start)
        self._delay = min(self._delay * 2, LONGEST_DELAY)


_OUR_OWN = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")


def _describe(code: int) -> str:
    if code < 0:
        return f"killed by signal {-code}, {signal.strsignal(-code) or 'unknown'}"
    return f"exit code {code}"
