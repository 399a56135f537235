"""The failures that a test has asked for."""

from __future__ import annotations

from typing import Final, NamedTuple

from emulator.local.wire import ANY

MAX_FAULTS: Final = 256


class Fault:
    """Operation `op` of domain `domid`: `after` times as ever, then `times` times with `error` or `delay_ms` late."""

    __slots__ = ("after", "delay_ms", "domid", "error", "op", "times")

    def __init__(self, op: int, domid: int, after: int, times: int, error: int, delay_ms: int) -> None:
        self.op = op
        self.domid = domid
        self.after = after
        self.times = times
        self.error = error
        self.delay_ms = delay_ms


class Outcome(NamedTuple):
    """0: as ever."""

    error: int
    delay_ms: int


class FaultPlan:
    """Faults are looked at in the order they were added; of each kind the first that applies wins."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def __len__(self) -> int:
        return len(self._faults)

    def add(self, fault: Fault) -> None:
        self._faults.append(fault)

    def clear(self) -> None:
        self._faults.clear()

    def take(self, op: int, domid: int) -> Outcome:
        """What shall happen to this operation; counts it."""
        error = delay_ms = 0
        for fault in self._faults:
            if fault.op not in (op, ANY) or fault.domid not in (domid, ANY) or fault.times == 0:
                continue
            if fault.after:
                fault.after -= 1
                continue
            if fault.times != ANY:
                fault.times -= 1
            error = error or fault.error
            delay_ms = delay_ms or fault.delay_ms
        return Outcome(error, delay_ms)
