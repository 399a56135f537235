"""A dom0 that waits for its order: from the saved state of one that has booted, else by booting.

The state is an artefact like others, of everything that dom0 had seen when it was saved: the images and ramdisk it
booted from, QEMU and its command line, the processor. The site image and the host's directories are attached under
the same names later, so dom0 looks at them only after its order.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from scripts.xen_rig import cache
from scripts.xen_rig.errors import RigError
from scripts.xen_rig.host import run, say, tool
from scripts.xen_rig.machine import Disks, Machine, command
from scripts.xen_rig.monitor import Monitor
from scripts.xen_rig.session import Session

RESUME_TIMEOUT: Final = 30.0


def state(place: Path, disks: Disks, cpus: int) -> Path:
    """The saved state that fits `disks`, made if it is not there."""
    return cache.artefact(place, _kind(cpus), identity(disks, cpus), lambda out: _save(out, disks, cpus)) / "memory"


def is_saved(place: Path, disks: Disks, cpus: int) -> bool:
    return cache.is_there(place, _kind(cpus), identity(disks, cpus))


def _kind(cpus: int) -> str:
    return f"state{cpus}"


def identity(disks: Disks, cpus: int) -> str:
    """`disks.site` counts by its size only; the two directories do not count."""
    qemu = Path(tool("qemu-system-x86_64")).stat()
    processor = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")][:1]
    unchanged = [disks.root.parent.name, disks.libraries.parent.name, disks.site.stat().st_size]
    neutral = dataclasses.replace(disks, **{field.name: Path("/", field.name) for field in dataclasses.fields(disks)})
    version = run([tool("qemu-system-x86_64"), "--version"])
    return cache.key(
        unchanged, command(neutral, cpus), version, qemu.st_size, qemu.st_mtime, processor, files=[disks.ramdisk]
    )


@contextlib.contextmanager
def session(
    disks: Disks,
    cpus: int,
    verb: Literal["run", "shell"],
    log: Path,
    *,
    saved: Path | None,
    verbose: bool = False,
) -> Iterator[Session]:
    """A dom0 that has begun with `verb`. Without `saved`, or if that state does not come to life, it is booted."""
    terminal = verb == "shell"
    if saved is not None:
        with contextlib.ExitStack() as stack:
            machine = stack.enter_context(Machine(disks, cpus, terminal=terminal, saved=saved))
            resumed = Session(machine, log, verbose=verbose)
            stack.callback(resumed.close)
            try:
                resumed.begin(verb, RESUME_TIMEOUT)
            except RigError as error:
                say(f"the saved state is of no use, booting instead ({error})")
                cache.forget(saved.parent)
            else:
                yield resumed
                return
    with Machine(disks, cpus, terminal=terminal) as machine:
        booted = Session(machine, log, verbose=verbose)
        try:
            booted.wait_ready()
            booted.begin(verb, RESUME_TIMEOUT)
            yield booted
        finally:
            booted.close()


def _save(out: Path, disks: Disks, cpus: int) -> None:
    say(f"booting once with {cpus} CPU{'s' if cpus > 1 else ''}, to save the state that later runs begin with")
    with contextlib.ExitStack() as stack:
        empty = stack.enter_context(cache.scratch(out.parent))
        machine = stack.enter_context(Machine(dataclasses.replace(disks, host=empty, share=empty), cpus))
        session = Session(machine, out / "console.log")
        stack.callback(session.close)
        session.wait_ready()
        session.warm()
        monitor = Monitor(machine.monitor)
        stack.callback(monitor.close)
        monitor.save(out / "memory")
