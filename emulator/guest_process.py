"""A guest in a process of its own: `python -m guest ... agent`, told what to do in JSON lines.

Of a local machine it is our child; in a domU, whatever command brings its standard input and output here.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from cpp_ring import LatencyRecorder


class GuestFailed(Exception):
    """The guest could not do what it was told; the text is the guest's."""


class GuestTimedOut(GuestFailed):
    """The guest did not answer in time."""


def decoded(answer: dict[str, Any]) -> LatencyRecorder:
    """What one of the measure operations recorded."""
    return LatencyRecorder.from_bytes(base64.b64decode(answer["recorder"]))


class GuestProcess:
    """A domain's guest. Commands and answers are those of `guest.agent`."""

    def __init__(
        self, hypervisor: str, domid: int, *, cpu: int | None = None, command: Sequence[str] | None = None
    ) -> None:
        """`hypervisor` as on the command line; `cpu`: pins the guest there; `command`: starts it, where it is no child
        of ours. Raises OSError: there is no such command.
        """
        local = [sys.executable, "-P", "-m", "guest", "--hypervisor", hypervisor, "--domid", str(domid), "agent"]
        self._process = subprocess.Popen(
            command or local,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            process_group=0,  # Ctrl-C is for us, who end it in order
        )
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        self._buffer = bytearray()
        self._sent = 0
        if cpu is not None:
            try:
                self.request("pin", cpu=cpu)
            except BaseException:
                self.close()
                raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def request(self, op: str, *, answer_within: float = 60.0, **parameters: Any) -> dict[str, Any]:
        """One command, one answer. Raises GuestFailed: refused, or the guest ended; GuestTimedOut."""
        deadline = time.monotonic() + answer_within
        self._sent += 1
        self._send(op, (json.dumps({"op": op, "id": self._sent, **parameters}) + "\n").encode(), deadline)
        while True:
            line = self._line(op, deadline)
            try:
                answer = json.loads(line)
            except ValueError:
                raise GuestFailed(f"{op}: {line[:80]!r} is no answer of a guest") from None
            if answer.pop("id", self._sent) == self._sent:
                break  # else that of a request which nobody waited for until its end
        if not answer.pop("ok"):
            raise GuestFailed(f"{op}: {answer['error']}")
        return dict(answer)

    def measure(self, op: str, **parameters: Any) -> LatencyRecorder:
        """As `request`, for one of the measure operations."""
        return decoded(self.request(op, **parameters))

    def close_device(self, dev: int) -> None:
        """Leaves a device, if the guest still can."""
        with contextlib.suppress(GuestFailed):
            self.request("close", dev=dev)

    def close(self) -> None:
        """Ends the guest in order: its devices are closed. Idempotent."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()  # a guest in the middle of an answer nobody reads must not wait for us
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> GuestProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, op: str, line: bytes, deadline: float) -> None:
        assert self._process.stdin is not None
        into = self._process.stdin.fileno()
        left = memoryview(line)
        while left:
            if not select.select([], [into], [], max(0.0, deadline - time.monotonic()))[1]:
                raise GuestTimedOut(f"{op}: the guest does not listen")
            try:
                left = left[os.write(into, left) :]
            except BrokenPipeError as error:
                raise GuestFailed(f"the guest ended before {op}") from error

    def _line(self, op: str, deadline: float) -> bytes:
        assert self._process.stdout is not None
        out = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            if not select.select([out], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise GuestTimedOut(f"{op}: no answer from the guest in time")
            data = os.read(out, 1 << 20)
            if not data:
                raise GuestFailed(f"{op}: the guest ended")
            self._buffer += data
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        return line
