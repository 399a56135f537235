"""The rows of the bench: what was measured, as a table, as JSON and against the targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cpp_ring import LatencyRecorder

LIMIT = "limit.cache-line"


@dataclass(slots=True)
class Row:
    """One measured thing. `recorder` holds nanoseconds, or what `unit` says: bytes, B/s."""

    name: str
    unit: str = "ns"
    recorder: LatencyRecorder = field(default_factory=LatencyRecorder)
    accesses: int = 1
    """Exchanges of the config ring in one sample, for rows that make several."""

    def percentile(self, percent: float) -> int:
        return self.recorder.percentile(percent)

    def as_json(self, limit: Row) -> dict[str, Any]:
        """The row as documented in the README; `ratio` is None for rows that are no time."""
        return {
            "name": self.name,
            "unit": self.unit,
            "count": self.recorder.count,
            "min": self.recorder.min,
            "p50": self.percentile(50),
            "p99": self.percentile(99),
            "p99.9": self.percentile(99.9),
            "ratio": self.ratio(limit),
        }

    def ratio(self, limit: Row) -> float | None:
        base = limit.percentile(50)
        return round(self.percentile(50) / base, 3) if self.unit == "ns" and base else None


def human(value: int, unit: str) -> str:
    """12 345 ns as "12.3 us", 1 048 576 bytes as "1.0 MB"."""
    step, names = 1000.0, ("ns", "us", "ms", "s") if unit == "ns" else ("B", "kB", "MB", "GB")
    per = "/s" if unit == "B/s" else ""
    number, power = float(value), 0
    while number >= step and power < len(names) - 1:
        number, power = number / step, power + 1
    return f"{number:.{int(power > 0 and number < 100)}f} {names[power]}{per}"


@dataclass(frozen=True, slots=True)
class Target:
    """A promise about p50s of one run."""

    text: str
    measured: float
    bound: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound


def targets(rows: dict[str, Row]) -> list[Target]:
    """What this run says about each target whose rows were measured."""

    def p50(name: str) -> float:
        return float(rows[name].percentile(50))

    def present(*names: str) -> bool:
        return all(name in rows and rows[name].recorder.count for name in names)

    if "guest.probe" in rows:
        return _kernel_targets(p50, present)
    result: list[Target] = []
    if present("config.get", LIMIT):
        bound = 2.0 if "peer.evtchn" in rows else 1.25  # a granted page between domains, or memory of two processes
        result.append(Target(f"config.get / {LIMIT}", p50("config.get") / p50(LIMIT), bound))
    if "peer.evtchn" in rows:
        return result + _xen_targets(p50, present, rows)
    if present("config.get.256", LIMIT):
        result.append(Target(f"config.get.256 / {LIMIT}", p50("config.get.256") / p50(LIMIT), 1.8))
    if present("config.set.python", "config.get"):
        hook = p50("config.set.python") - p50("config.get")
        result.append(Target("config.set.python - config.get, us", hook / 1e3, 1.5))
    if present("config.get.asleep", "peer.eventfd"):
        result.append(Target("config.get.asleep / peer.eventfd", p50("config.get.asleep") / p50("peer.eventfd"), 1.3))
    for peer in ("peer.unix-socket", "peer.vhost-user"):
        if present(peer, "config.get"):
            result.append(Target(f"{peer} / config.get", p50(peer) / p50("config.get"), 50, at_least=True))
    if present("emulator.start"):
        result.append(Target("emulator.start, ms", p50("emulator.start") / 1e6, 250))
    if present("emulator.pss"):
        result.append(Target("emulator.pss, MB", p50("emulator.pss") / 1e6, 20))
    return result


def _xen_targets(p50: Callable[[str], float], present: Callable[..., bool], rows: dict[str, Row]) -> list[Target]:
    result: list[Target] = []
    for how, bound in (("awake", 1 / 20), ("asleep", 1 / 2)):
        ours = "config.get" if how == "awake" else "config.get.asleep"
        if present(ours, f"peer.xenvchan.{how}"):
            measured = p50(ours) / p50(f"peer.xenvchan.{how}")
            result.append(Target(f"{ours} / peer.xenvchan.{how}", measured, bound))
    for probe in ("probe.blk", "probe.blk.burst", "probe.blk.reads"):
        if present(probe, "config.get"):
            accesses = rows[probe].accesses
            measured = p50(probe) / (accesses * p50("config.get"))
            result.append(Target(f"{probe} / ({accesses} accesses x config.get)", measured, 10))
    return result


def _kernel_targets(p50: Callable[[str], float], present: Callable[..., bool]) -> list[Target]:
    result: list[Target] = []

    def compare(name: str, peer: str, bound: float, at_least: bool = False) -> None:
        ours, theirs = f"guest.{name}", f"peer.{peer}.{name}"
        if present(ours, theirs):
            result.append(Target(f"{ours} / {theirs}", p50(ours) / p50(theirs), bound, at_least))

    for what in ("read", "write"):
        compare(f"{what}.4k.d1", "qdisk", 0.5)
        compare(f"{what}.4k.d1", "blkback", 1.2)
        compare(f"{what}.64k", "qdisk", 2, at_least=True)
    compare("tcp.stream", "netback", 0.5, at_least=True)
    return result
