"""The CPUs this process may run on, and which of them are threads of one core."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two CPUs for two processes that spin. `siblings`: whether they are threads of one core; None: not known."""

    first: int
    second: int
    siblings: bool | None


def allowed() -> list[int]:
    """The CPUs of this process, lowest first."""
    return sorted(os.sched_getaffinity(0))


def choose_pair(cpus: Sequence[int]) -> Pair:
    """The first CPU and one of another core, of the same package where there is one; of the same core if it must be.

    Two threads of one core share its pipeline and its caches: what passes between them says nothing of two cores.
    Raises ValueError for fewer than two CPUs.
    """
    first, *others = cpus
    if not others:
        raise ValueError("one CPU is no pair")
    core, package = core_of(first), _read(first, "physical_package_id")

    def rank(cpu: int) -> tuple[bool, bool]:
        return core is not None and core_of(cpu) == core, _read(cpu, "physical_package_id") != package

    second = min(others, key=rank)  # the first of equals
    other = core_of(second)
    return Pair(first, second, None if core is None or other is None else core == other)


def count_cores(cpus: Sequence[int]) -> int | None:
    """How many cores the CPUs are threads of; None if the kernel does not say."""
    cores = {core_of(cpu) for cpu in cpus}
    return None if None in cores else len(cores)


def core_of(cpu: int) -> str | None:
    """What all threads of a core have in common; None if the kernel does not say."""
    if siblings := _read(cpu, "thread_siblings_list"):
        return siblings
    package, core = _read(cpu, "physical_package_id"), _read(cpu, "core_id")
    return f"package {package} core {core}" if package and core else None


def _read(cpu: int, node: str) -> str | None:
    try:
        return (_CPUS / f"cpu{cpu}" / "topology" / node).read_text().strip()
    except OSError:
        return None
