"""One conversation with a booted machine: waits for dom0, gives it its order, passes on output, gets the exit code.

On the control port dom0 says `ready`, is told `run CLOCK` or `shell CLOCK`, says `begun` and at the end `exit CODE`;
`warm CLOCK` makes it ready again. dom0/init is the other side.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import socket
import sys
import time
from collections import deque
from pathlib import Path
from typing import Final, Literal

from scripts.xen_rig.errors import DOM0_DIED, SCRIPT_TIMEOUT, RigError
from scripts.xen_rig.machine import Machine
from scripts.xen_rig.monitor import Monitor

BOOT_TIMEOUT: Final = 180.0
WARM_TIMEOUT: Final = 600.0
"""Several domUs boot meanwhile."""
DEAD: Final = re.compile(rb"Panic on CPU|Kernel panic - not syncing|Dom(?:ain )?0 (?:crashed|shutdown)", re.IGNORECASE)
LAST_WORDS: Final = 1.0
"""Seconds in which a dying system still writes why."""
TAIL: Final = 40
POLL: Final = 0.25
INPUT_TO_XEN: Final = b"\x01\x01\x01"
"""What the console is told to have it so; again, and its input is dom0's."""
HEARTBEAT: Final = 1.0
"""Seconds. QEMU may lose an interrupt of a processor's own timer (docs/rig.md), and Xen sets that timer again only when
it comes: no deadline would ever pass. Any other interrupt brings the lost one."""
BEAT: Final = b"\0"
"""A key without a meaning to Xen."""
QUESTIONS: Final = (b"d", b"q", b"r")
"""Keys: the processors' registers, the domains, who waits for a processor."""
ANSWERED: Final = 2.0
"""Seconds in which Xen writes nothing more."""
LONGEST_ANSWER: Final = 10.0
"""Seconds: the script may write all the while."""
STATE: Final = ("info registers -a", "info lapic", "info pic")
"""Of QEMU's monitor. Before Xen is asked: a key is an interrupt."""
NO_STATE: Final = re.compile(r"FPR|XMM|FCW")
"""Lines that do not tell where a processor is."""


class Session:
    """`log`: gets the whole serial console. `verbose`: standard error gets it too."""

    def __init__(self, machine: Machine, log: Path, *, verbose: bool = False) -> None:
        self._machine = machine
        self._log = log.open("wb")
        self._verbose = verbose
        self._recent: deque[bytes] = deque(maxlen=TAIL)
        self._line = b""
        self._dead_since: float | None = None
        self._control = b""
        self._beaten = time.monotonic()
        self._selector = selectors.DefaultSelector()
        for end in (machine.control, machine.output, machine.console):
            if end is not None:
                end.setblocking(False)
                self._selector.register(end, selectors.EVENT_READ)

    def wait_ready(self, timeout: float = BOOT_TIMEOUT) -> None:
        """Until dom0 waits for an order. Raises RigError if it never does."""
        late = f"dom0 was not ready after {timeout:.0f} s: look at its console, or try again with --verbose"
        if self._until(rb"ready\n", time.monotonic() + timeout) is None:
            raise self._failure(late, DOM0_DIED)

    def warm(self) -> None:
        """Has dom0 read what every run reads, start the spare domUs, and wait again."""
        self._order("warm")
        self.wait_ready(WARM_TIMEOUT)

    def begin(self, verb: Literal["run", "shell"], timeout: float) -> None:
        """Raises RigError if dom0 does not say that it has begun."""
        self._press(INPUT_TO_XEN)
        self._order(verb)
        if self._until(rb"begun\n", time.monotonic() + timeout) is None:
            raise self._failure(f"dom0 did not take its order in {timeout:.0f} s", DOM0_DIED)

    def wait(self, timeout: float | None) -> int:
        """Returns the exit code of the script or the shell. Raises RigError if there is none."""
        deadline = None if timeout is None else time.monotonic() + timeout
        answer = self._until(rb"exit (\d+)\n", deadline)
        if answer is None:
            self._interrogate()
            raise self._failure(f"the script was still running after {timeout:g} s: see --timeout", SCRIPT_TIMEOUT)
        self._drain()
        return int(answer[1])

    def close(self) -> None:
        self._selector.close()
        self._log.close()

    def _order(self, verb: str) -> None:
        try:
            self._machine.control.sendall(f"{verb} {time.time():.3f}\n".encode())
        except OSError as error:
            raise self._failure(f"QEMU ended: {self._machine.complaint()}", DOM0_DIED) from error

    def _until(self, pattern: bytes, deadline: float | None) -> re.Match[bytes] | None:
        while not (found := re.search(pattern, self._control)):
            self._check_alive()
            self._beat()
            left = POLL if deadline is None else min(POLL, deadline - time.monotonic())
            if left <= 0:
                return None
            self._pass_on(left)
        self._control = self._control[found.end() :]
        return found

    def _pass_on(self, seconds: float) -> bool:
        """Moves what is there to where it belongs. Whether there was anything."""
        events = self._selector.select(seconds)
        for key, _ in events:
            end = key.fileobj
            assert isinstance(end, socket.socket)
            try:
                data = end.recv(1 << 16)
            except ConnectionError:
                data = b""
            if not data:
                self._selector.unregister(end)
            elif end is self._machine.control:
                self._control += data
            elif end is self._machine.output:
                _write_all(1, data)
            else:
                self._note(data)
        return bool(events)

    def _note(self, data: bytes) -> None:
        self._log.write(data)
        self._log.flush()
        if self._verbose:
            _write_all(2, data)
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            self._recent.append(line.rstrip(b"\r"))
            if DEAD.search(line) and self._dead_since is None:
                self._dead_since = time.monotonic()

    def _check_alive(self) -> None:
        if self._machine.process.poll() is not None:
            self._drain()
            raise self._failure(f"QEMU ended while dom0 was running: {self._machine.complaint()}", DOM0_DIED)
        if self._dead_since is not None and time.monotonic() > self._dead_since + LAST_WORDS:
            raise self._failure("dom0 or Xen crashed: its last words are above", DOM0_DIED)

    def _beat(self) -> None:
        if time.monotonic() - self._beaten > HEARTBEAT:
            self._beaten = time.monotonic()
            self._press(BEAT)

    def _press(self, keys: bytes) -> None:
        """On the console, if it is no person's terminal."""
        if self._machine.console is not None:
            with contextlib.suppress(OSError):  # it has ended, or takes no more
                self._machine.console.sendall(keys)

    def _interrogate(self) -> None:
        """What a machine is doing that does not come to an end, for whoever has only the output."""
        with contextlib.suppress(RigError, OSError), contextlib.closing(Monitor(self._machine.monitor)) as monitor:
            for line in [line for question in STATE for line in monitor.ask(question).splitlines()]:
                if not NO_STATE.match(line):
                    print(f"qemu: {line}", file=sys.stderr)
        self._recent = deque(self._recent)  # all of it
        for question in QUESTIONS:
            self._press(question)
            deadline = time.monotonic() + LONGEST_ANSWER
            while time.monotonic() < deadline and self._pass_on(ANSWERED):
                pass

    def _drain(self) -> None:
        while self._pass_on(0):
            pass

    def _failure(self, message: str, code: int) -> RigError:
        if not self._verbose:
            for line in [*self._recent, *([self._line] if self._line else [])]:
                print(f"console: {line.decode(errors='replace')}", file=sys.stderr)
        return RigError(message, code)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    with contextlib.suppress(BlockingIOError):
        while view:
            view = view[os.write(descriptor, view) :]
