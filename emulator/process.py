"""`virtio-dm run`: the emulator of one domain, from its configuration to its exit code."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from typing import Final

from cpp_ring.store import Store, StoreError
from emulator import lock, systemd, toolstack
from emulator.exit_codes import ExitCode
from emulator.loop import EventLoop
from emulator.machine import DEFAULT_MAP_BUDGET, HypervisorName, Machine, open_machine, require_domain
from emulator.poll import Polling
from emulator.spec import Spec
from emulator.xenbus import Xenbus
from emulator.xenbus_device import PATIENCE_SECONDS

DRAIN_SECONDS: Final = PATIENCE_SECONDS + 3.0
"""How long a model may take to return once we are to stop."""

THREAD_SECONDS: Final = 0.5
"""How long threads that have nothing left to do may take to end."""

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

log = logging.getLogger("virtio-dm")


@dataclass(frozen=True, slots=True)
class RunConfig:
    """What `run` was asked for, checked. `devices`: attached at the start, device i as devid i, and removed at the end.

    `spin_us`: how long a device's thread spins after its last work before it sleeps; 0 never, infinity always, None as
    `Polling.default` says.
    `map_budget`: MiB of the domain's memory that all its devices together have mapped at a time at most.
    """

    domid: int
    hypervisor: HypervisorName
    devices: tuple[Spec, ...] = ()
    spin_us: float | None = None
    map_budget: int = DEFAULT_MAP_BUDGET


def run(config: RunConfig) -> ExitCode:
    """Serves the domain until a signal, its end, or the end of the hypervisor. Raises Failure before that."""
    machine = open_machine(config.hypervisor)
    with machine.open_store() as store:
        require_domain(machine, store, config.domid)
        job = f"serves domain {config.domid} on {machine.name}"
        held = lock.take(lock.emulator_lock(machine.domain_directory(config.domid)), job)
        try:
            return Emulator(config, machine, store).run()
        finally:
            os.close(held)


class Emulator:
    """One domain's emulator. The store is used in the main thread only."""

    def __init__(self, config: RunConfig, machine: Machine, store: Store) -> None:
        self._config = config
        self._machine = machine
        self._store = store
        self._loop = EventLoop()
        self._signals = 0
        self._stopping = False
        self._gone = False  # the domain
        self._result = ExitCode.OK
        polling = Polling.default() if config.spin_us is None else Polling.fixed(config.spin_us)
        log.debug("a device stays awake for %.0f to %.0f us after its last work", polling.least, polling.most)
        self._transient: frozenset[int] = frozenset()
        self._xenbus = Xenbus(
            self._loop,
            store,
            machine.open_hypervisor(config.map_budget),
            backend=machine.backend,
            frontend=config.domid,
            polling=polling,
            domain_gone=self._domain_gone,
            not_built=self._not_built,
        )

    def run(self) -> ExitCode:
        config = self._config
        with self._loop.signals(self._signalled, *STOP_SIGNALS):
            self._transient = toolstack.attach_all(self._store, self._machine.backend, config.domid, config.devices)
            self._xenbus.start()
            self._watchdog()
            log.info("serving domain %d on %s", config.domid, self._machine.name)
            systemd.notify("READY=1")
            self._run_loop()
        self._loop.close()
        return self._result

    def _run_loop(self) -> None:
        while True:
            try:
                self._loop.run()
                return
            except StoreError as error:
                self._store_gone(error)

    def _signalled(self, number: int) -> None:
        """In the main thread, whatever it does at the moment."""
        self._signals += 1
        if self._signals > 1:
            log.warning("stopped at once by a second signal")
            os._exit(ExitCode.FORCED)
        self._loop.post(lambda: self._stop(f"stopping: {signal.Signals(number).name}"))

    def _domain_gone(self) -> None:
        self._gone = True
        self._loop.post(lambda: self._stop(f"domain {self._config.domid} is gone"))

    def _not_built(self, devid: int, reason: str) -> None:
        """A device that was asked for on the command line cannot be had: nobody waits for this process to go on."""
        if devid in self._transient and not self._stopping:
            self._result = ExitCode.REFUSED
            self._loop.post(lambda: self._stop(f"device {devid} cannot be made: {reason}"))

    def _store_gone(self, error: StoreError) -> None:
        self._loop.before_sleep(None)
        self._transient = frozenset()
        if self._result is not ExitCode.HYPERVISOR_LOST:
            self._result = ExitCode.HYPERVISOR_LOST
            self._stop(self._machine.store_gone(error))

    def _stop(self, reason: str) -> None:
        if not self._stopping:
            self._stopping = True
            systemd.notify("STOPPING=1")
            self._loop.call_later(DRAIN_SECONDS, self._abandon)
        log.info("%s", reason)
        if self._gone and self._result is not ExitCode.HYPERVISOR_LOST:
            self._xenbus.forget(self._loop.stop)
        else:
            self._xenbus.drain(self._transient, self._loop.stop)

    def _abandon(self) -> None:
        """A model does not return: the process ends all the same, and with it every mapping."""
        self._loop.stop()  # first: what follows speaks to the store, which may be gone
        if self._result is not ExitCode.HYPERVISOR_LOST:
            self._result = ExitCode.STUCK
        stuck = [device for device in self._xenbus.devices if device.stuck]
        for device in stuck:
            device.log.error("its model did not return in %g s; it is abandoned", DRAIN_SECONDS)
            device.handle(device.abandon)

    def _watchdog(self) -> None:
        if period := systemd.watchdog_period():
            systemd.notify("WATCHDOG=1")
            self._loop.call_later(period, self._watchdog)


def end_process(code: ExitCode) -> None:
    """Ends the process. A thread that will not end, of ours or of a model's making, must not keep it."""
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    deadline = time.monotonic() + THREAD_SECONDS
    for thread in others:
        thread.join(max(0.0, deadline - time.monotonic()))
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if code is ExitCode.STUCK or any(thread.is_alive() for thread in others):
        os._exit(code)
    sys.exit(code)
