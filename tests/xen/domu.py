"""domUs for tests that run in the rig's dom0: start, command, destroy.

    with Domu("pv") as domu:
        code, output = domu.run("uname -r; ls /dev/xen")
        with domu.agent() as guest:
            guest("connect", dev=0)

A domU boots from memory (kernel and ramdisk of the rig) and has this checkout's package, Python, busybox and the
libraries of Xen. `emulator=True` adds numpy, click and rich, for a driver domain. One without peculiarities is a spare
of the saved state as long as there is one: nobody waits for it to boot.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from scripts.xen_rig import domu_config, order
from scripts.xen_rig.domu_agent.client import Client, DomuGone, RemoteProcess
from scripts.xen_rig.domu_config import RAMDISKS, Kind

RAMDISK: Final = Path("/usr/lib/rig/domu.cpio")
LIBRARIES: Final = Path("/rig/libraries/domu.cpio")
OUR_RAMDISK: Final = Path("/rig/domu.cpio")
SITE: Final = Path("/rig/site/domu.cpio")
SPARES: Final = RAMDISKS / "spares"
CPUS: Final = int(os.environ.get(order.CPUS, "2"))
"""Of the machine."""
CONSOLES: Final = Path("/var/log/xen/console")
START_TIMEOUT: Final = 120.0
TAIL: Final = 25

_numbers = itertools.count(1)


class Completed(NamedTuple):
    code: int
    output: str
    """Standard output and error, as they came."""


class Domu:
    """A domU from `start` (or entering the context) to `destroy` (or leaving it).

    `options`: those of `domu_config.text`. `cpus`: physical CPUs for it, by default the last; dom0 is pinned to 0.
    `extra`: more lines of xl.cfg(5). `arguments`: of its kernel. With any of them it is booted, and so it is when no
    spare is left.
    """

    def __init__(self, kind: Kind, *, emulator: bool = False, **options: Any) -> None:
        self.name = ""
        self.domid = -1
        self.kind: Kind = kind
        self._emulator = emulator
        self._options = options
        self._client: Client | None = None
        self._site_of = -1  # the domid that has this checkout's package

    def start(self) -> Self:
        """Returns when the domU takes commands. Raises AssertionError with its console's end if it never does."""
        spare = None if self._options else take_spare(domu_config.Spare(self.kind, self._emulator))
        self.name = spare or f"{self.kind}-{next(_numbers)}"
        if spare is None:
            self._boot()
        try:
            self.connect()
        except BaseException:
            self.destroy()
            raise
        return self

    def _boot(self) -> None:
        if "own_ramdisk" not in self._options:
            make_ramdisk(self._emulator)
        configuration = RAMDISKS / f"{self.name}.cfg"
        options = {"cpus": domu_config.cpus_for_domus(CPUS)} | self._options
        text = domu_config.text(self.kind, self.name, emulator=self._emulator, **options)
        configuration.write_text(text)
        done = subprocess.run(["xl", "create", "-q", configuration], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (
            f"xl create {self.name} failed with {free_memory()} MiB free: {done.stderr.strip()[:2000]}"
        )

    def connect(self, timeout: float = START_TIMEOUT) -> None:
        """To the domU's agent; again after a reboot of the domU, with its new domid."""
        if self._client is not None:
            self._client.close()
        self.domid = int(xl("domid", self.name))
        try:
            self._client = Client(self.domid, timeout)
        except DomuGone as error:
            raise AssertionError(f"{error}; its console ends with:\n{self.console_tail()}") from error
        if self._site_of != self.domid:
            done = self.run("cd / && exec cpio -idmu", stdin=SITE.read_bytes())
            assert done.code == 0, done.output
            self._site_of = self.domid

    def popen(
        self,
        command: str | Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        directory: str | None = None,
        merged: bool = False,
    ) -> RemoteProcess:
        """Starts a process. A string is the shell's. The domU's PATH, PYTHONPATH and so on are set.

        `merged`: standard error comes with standard output.
        """
        assert self._client is not None, f"{self.name} is not running"
        argv = ["sh", "-c", command] if isinstance(command, str) else command
        return self._client.start(argv, environment, directory, merged=merged)

    def run(self, command: str | Sequence[str], timeout: float = 120.0, stdin: bytes = b"") -> Completed:
        """Starts a process and waits for its end."""
        process = self.popen(command, merged=True)
        if stdin:
            process.write(stdin)
        process.close_stdin()
        try:
            output = process.read_all(timeout)
        except TimeoutError:
            process.send_signal(signal.SIGKILL)
            raise
        return Completed(process.wait(), output.decode(errors="replace"))

    def agent(self, *options: str) -> GuestAgent:
        """The driver side of this checkout, `python -m guest agent`, in the domU."""
        command = ["python3", "-m", "guest", "--hypervisor", "xen", "--domid", str(self.domid), *options, "agent"]
        return GuestAgent(self.popen(command))

    def alive(self) -> bool:
        # Without a xenstored, xl waits for ever.
        command = ["xl", "domid", self.name]
        return subprocess.run(command, capture_output=True, timeout=START_TIMEOUT, check=False).returncode == 0

    def disconnect(self) -> None:
        """Lets go of the domU's pages, so that they do not keep it from vanishing."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def shutdown(self, timeout: float = 60.0) -> None:
        """As the domU's administrator would; returns when the domain is gone."""
        self.disconnect()
        xl("shutdown", "-w", self.name, timeout=timeout)

    def destroy(self) -> None:
        """At once. Twice is once."""
        self.disconnect()
        try:
            xl("destroy", self.name)
        except AssertionError:
            if self.alive():
                raise

    def replace(self) -> None:
        """By another one of its kind: its kernel is of no more use."""
        self.destroy()
        self.start()

    def console_tail(self) -> str:
        path = CONSOLES / f"guest-{self.name}.log"
        return last_lines(path.read_text(errors="replace") if path.exists() else "(empty)")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.destroy()


class GuestAgent:
    """`guest/agent.py` under command: `guest("config_read", dev=0, offset=0, size=8)` gives the answer's object."""

    def __init__(self, process: RemoteProcess) -> None:
        self.process = process

    def send(self, op: str, **parameters: Any) -> None:
        self.process.write(json.dumps({"op": op, **parameters}).encode() + b"\n")

    def receive(self, timeout: float = 60.0) -> dict[str, Any]:
        line = self.process.read_line(timeout)
        if not line:
            raise DomuGone(f"the guest agent ended with {self.process.wait()}: {self.process.stderr.decode()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __call__(self, op: str, *, answer_within: float = 120.0, **parameters: Any) -> dict[str, Any]:
        """Raises AssertionError if the answer is not `ok`."""
        self.send(op, **parameters)
        answer = self.receive(answer_within)
        assert answer["ok"], f"{op}: {answer['kind']}: {answer['error']}"
        return answer

    def close(self, timeout: float = 60.0) -> int:
        """Ends its input, and so it. Its exit code."""
        self.process.close_stdin()
        return self.process.wait(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.process.send_signal(signal.SIGKILL)


def xl(*arguments: str, timeout: float = 120.0) -> str:
    """Output of an xl command. Raises AssertionError with what it said."""
    done = subprocess.run(["xl", *arguments], capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"xl {' '.join(arguments)} failed: {done.stderr.strip()[:2000]}"
    return done.stdout.strip()


def domains() -> dict[str, str]:
    """Name and state of every domain but dom0. A zombie is there too, as (null)."""
    rows = [line.split() for line in xl("list").splitlines()[1:]]
    return {row[0]: row[4] for row in rows if row[1] != "0"}


def last_lines(text: str) -> str:
    return "\n".join(text.splitlines()[-TAIL:])


def xen_log() -> str:
    """What the hypervisor has said since it booted, domains that crashed among it; empty without an xl that answers."""
    try:
        done = subprocess.run(["xl", "dmesg"], capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout


def domu_consoles() -> list[tuple[str, str]]:
    """Name and end of the console of every domU that had something to say."""
    found = [(path.name, path.read_text(errors="replace")) for path in sorted(CONSOLES.glob("guest-*.log"))]
    return [(name, last_lines(text)) for name, text in found if text]


def free_memory() -> int:
    """MiB that Xen has for more domUs."""
    return next(int(line.split(":")[1]) for line in xl("info").splitlines() if line.startswith("free_memory"))


def make_ramdisk(emulator: bool) -> None:
    """The domUs' ramdisk, put together once in memory."""
    path = domu_config.ramdisk(emulator)
    if not path.exists():
        RAMDISKS.mkdir(exist_ok=True)
        temporary = path.with_suffix(".new")
        with temporary.open("wb") as out:
            for part in (RAMDISK, *([LIBRARIES] if emulator else []), OUR_RAMDISK):
                with part.open("rb") as source:
                    shutil.copyfileobj(source, out, 1 << 20)
        temporary.rename(path)


def take_spare(wanted: domu_config.Spare) -> str | None:
    """The name of a domU that runs since the state was saved, and that is the caller's from here on."""
    for name, spare in domu_config.spares(CPUS).items():
        if spare == wanted:
            with contextlib.suppress(FileNotFoundError):
                (SPARES / name).unlink()
                return name
    return None
