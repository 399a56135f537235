"""domUs for tests that run in the rig's dom0: start, command, destroy.

    with Domu("pv") as domu:
        code, output = domu.run("uname -r; ls /dev/xen")
        with domu.agent() as guest:
            guest("connect", dev=0)

A domU boots from memory (kernel and ramdisk of the rig) and has this checkout's package, Python, busybox and the
libraries of Xen. `emulator=True` adds numpy, click and rich, for a driver domain.
"""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Self

from scripts.xen_rig.domu_agent.client import Client, DomuGone, RemoteProcess

KERNEL: Final = Path("/usr/lib/rig/vmlinux")
RAMDISK: Final = Path("/usr/lib/rig/domu.cpio")
LIBRARIES: Final = Path("/rig/libraries/domu.cpio")
SITE: Final = Path("/rig/site/domu.cpio")
WORK: Final = Path("/run/rig")
CONSOLES: Final = Path("/var/log/xen/console")
KERNEL_ARGUMENTS: Final = (
    "console=hvc0 loglevel=4 panic=1 mitigations=off"
    " rodata=off cryptomgr.notests apparmor=0 lsm=capability"  # 3 s less to boot: pages remapped, self-tests, policies
)
START_TIMEOUT: Final = 60.0
TAIL: Final = 25

Kind = Literal["pv", "pvh"]
_numbers = itertools.count(1)


class Completed(NamedTuple):
    code: int
    output: str
    """Standard output and error, as they came."""


class Domu:
    """A domU from `start` (or entering the context) to `destroy` (or leaving it).

    `cpus`: physical CPUs for it; dom0 is pinned to 0. `extra`: more lines of xl.cfg(5). `arguments`: of its kernel.
    """

    def __init__(
        self,
        kind: Kind,
        *,
        name: str | None = None,
        vcpus: int = 1,
        memory: int = 256,
        cpus: str = "1",
        emulator: bool = False,
        extra: Sequence[str] = (),
        arguments: str = "",
    ) -> None:
        self.name = name or f"{kind}-{next(_numbers)}"
        self.domid = -1
        # Half of it is the limit of what may lie in the root, which is memory too.
        self._memory = memory + (256 if emulator else 0)
        self._emulator = emulator
        self._client: Client | None = None
        self._settings = [
            f'type="{kind}"',
            f'name="{self.name}"',
            f"vcpus={vcpus}",
            f"memory={self._memory}",
            f'cpus="{cpus}"',
            f'kernel="{KERNEL}"',
            f'cmdline="{KERNEL_ARGUMENTS} {arguments}"',
            # Without it a PVH domU dies in software emulation: rdtscp is not there.
            'tsc_mode="native"',
            'on_crash="destroy"',
            *extra,
        ]

    def start(self) -> Self:
        """Returns when the domU takes commands. Raises AssertionError with its console's end if it never does."""
        settings = [*self._settings, f'ramdisk="{ramdisk(self._emulator)}"']
        configuration = WORK / f"{self.name}.cfg"
        configuration.write_text("\n".join(settings) + "\n")
        done = subprocess.run(["xl", "create", "-q", configuration], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (
            f"xl create {self.name} failed with {free_memory()} MiB free: {done.stderr.strip()[:2000]}"
        )
        self.domid = int(xl("domid", self.name))
        try:
            self.connect()
        except BaseException:
            self.destroy()
            raise
        return self

    def connect(self, timeout: float = START_TIMEOUT) -> None:
        """To the domU's agent; again after a reboot of the domU, with its new domid."""
        if self._client is not None:
            self._client.close()
        self.domid = int(xl("domid", self.name))
        try:
            self._client = Client(self.domid, timeout)
        except DomuGone as error:
            raise AssertionError(f"{error}; its console ends with:\n{self.console_tail()}") from error

    def popen(
        self,
        command: str | Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        directory: str | None = None,
    ) -> RemoteProcess:
        """Starts a process. A string is the shell's. The domU's PATH, PYTHONPATH and so on are set."""
        assert self._client is not None, f"{self.name} is not running"
        return self._client.start(
            ["sh", "-c", command] if isinstance(command, str) else command, environment, directory
        )

    def run(self, command: str | Sequence[str], timeout: float = 60.0, stdin: bytes = b"") -> Completed:
        """Starts a process and waits for its end."""
        argv = ["sh", "-c", command] if isinstance(command, str) else list(command)
        process = self.popen(["sh", "-c", 'exec "$@" 2>&1', "sh", *argv])
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
        return subprocess.run(["xl", "domid", self.name], capture_output=True, check=False).returncode == 0

    def disconnect(self) -> None:
        """Lets go of the domU's pages, so that they do not keep it from vanishing."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def shutdown(self, timeout: float = 30.0) -> None:
        """As the domU's administrator would; returns when the domain is gone."""
        self.disconnect()
        xl("shutdown", "-w", self.name, timeout=timeout)

    def destroy(self) -> None:
        """At once. Twice is once."""
        self.disconnect()
        if self.alive():
            xl("destroy", self.name)

    def console_tail(self) -> str:
        path = CONSOLES / f"guest-{self.name}.log"
        lines = path.read_text(errors="replace").splitlines() if path.exists() else ["(empty)"]
        return "\n".join(lines[-TAIL:])

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

    def receive(self, timeout: float = 30.0) -> dict[str, Any]:
        line = self.process.read_line(timeout)
        if not line:
            raise DomuGone(f"the guest agent ended with {self.process.wait()}: {self.process.stderr.decode()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __call__(self, op: str, *, answer_within: float = 60.0, **parameters: Any) -> dict[str, Any]:
        """Raises AssertionError if the answer is not `ok`."""
        self.send(op, **parameters)
        answer = self.receive(answer_within)
        assert answer["ok"], f"{op}: {answer['kind']}: {answer['error']}"
        return answer

    def close(self, timeout: float = 30.0) -> int:
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


def xl(*arguments: str, timeout: float = 60.0) -> str:
    """Output of an xl command. Raises AssertionError with what it said."""
    done = subprocess.run(["xl", *arguments], capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"xl {' '.join(arguments)} failed: {done.stderr.strip()[:2000]}"
    return done.stdout.strip()


def domains() -> dict[str, str]:
    """Name and state of every domain but dom0. A zombie is there too, as (null)."""
    rows = [line.split() for line in xl("list").splitlines()[1:]]
    return {row[0]: row[4] for row in rows if row[1] != "0"}


def free_memory() -> int:
    """MiB that Xen has for more domUs."""
    return next(int(line.split(":")[1]) for line in xl("info").splitlines() if line.startswith("free_memory"))


def ramdisk(emulator: bool) -> Path:
    """The domUs' ramdisk, put together once in memory."""
    path = WORK / ("driver.cpio" if emulator else "domu.cpio")
    if not path.exists():
        WORK.mkdir(exist_ok=True)
        temporary = path.with_suffix(".new")
        with temporary.open("wb") as out:
            for part in (RAMDISK, *([LIBRARIES] if emulator else []), SITE):
                with part.open("rb") as source:
                    shutil.copyfileobj(source, out, 1 << 20)
        temporary.rename(path)
    return path
