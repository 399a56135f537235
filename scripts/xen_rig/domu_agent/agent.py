"""The domU's end: starts processes, passes on their input, output and end. One client at a time, for ever."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
from typing import Final

from scripts.xen_rig.domu_agent.forked import Fork, is_python, preload
from scripts.xen_rig.domu_agent.frames import Decoder, Kind, encode
from scripts.xen_rig.domu_agent.vchan import Vchan

DOM0: Final = 0
FULL: Final = 1 << 20
"""Bytes for the client that wait; above it nothing more is read from processes."""
READ_SIZE: Final = 1 << 16


class Child:
    """One process, with what is to be written to it."""

    def __init__(
        self, number: int, argv: list[str], environment: dict[str, str], directory: str | None, *, merged: bool
    ) -> None:
        """`merged`: standard error goes where standard output goes."""
        self.number = number
        self.process = (
            Fork(argv, environment, directory, merged=merged)
            if is_python(argv)
            else subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if merged else subprocess.PIPE,
                env={**os.environ, **environment},
                cwd=directory,
                start_new_session=True,
                bufsize=0,
            )
        )
        assert self.process.stdin
        assert self.process.stdout
        self.stdin = self.process.stdin
        self.outputs = {self.process.stdout.fileno(): Kind.STDOUT}
        if self.process.stderr:
            self.outputs[self.process.stderr.fileno()] = Kind.STDERR
        for descriptor in (self.stdin.fileno(), *self.outputs):
            os.set_blocking(descriptor, False)
        self.pid_descriptor = os.pidfd_open(self.process.pid)
        self.pending = bytearray()
        self.ending = False

    def feed(self) -> None:
        """Writes what it can of what is pending."""
        if self.stdin.closed:
            return
        try:
            while self.pending:
                del self.pending[: os.write(self.stdin.fileno(), self.pending[:READ_SIZE])]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self.pending.clear()
            self.ending = True
        if self.ending:
            self.stdin.close()

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.process.stderr):
            if file:
                file.close()
        os.close(self.pid_descriptor)


class Agent:
    def __init__(self, channel: Vchan) -> None:
        self._channel = channel
        self._outgoing = bytearray(encode(Kind.HELLO, 0))
        self._decoder = Decoder()
        self._children: dict[int, Child] = {}
        self._gone = False

    def serve(self) -> None:
        """Until the client goes."""
        while not self._gone:
            for descriptor in self._wait():
                self._handle(descriptor)
            self._exchange()
        for child in self._children.values():
            child.close()

    def _wait(self) -> list[int]:
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN)
        for child in self._children.values():
            poll.register(child.pid_descriptor, select.POLLIN)
            if child.pending and not child.stdin.closed:
                poll.register(child.stdin.fileno(), select.POLLOUT)
            if len(self._outgoing) < FULL:
                for descriptor in child.outputs:
                    poll.register(descriptor, select.POLLIN)
        return [descriptor for descriptor, _ in poll.poll()]

    def _handle(self, descriptor: int) -> None:
        if descriptor == self._channel.fileno():
            self._channel.acknowledge()
            return
        for child in list(self._children.values()):
            if descriptor == child.pid_descriptor:
                self._end(child)
            elif descriptor in child.outputs:
                self._pass_output(child, descriptor)
            elif not child.stdin.closed and descriptor == child.stdin.fileno():
                child.feed()

    def _exchange(self) -> None:
        while data := self._channel.read():
            for kind, number, payload in self._decoder.feed(data):
                self._obey(kind, number, payload)
        self._gone = data is None
        while self._outgoing and (count := self._channel.write(bytes(self._outgoing[:READ_SIZE]))) > 0:
            del self._outgoing[:count]

    def _obey(self, kind: Kind, number: int, payload: bytes) -> None:
        if kind is Kind.START:
            try:
                self._children[number] = Child(number, **json.loads(payload))
            except OSError as error:
                self._outgoing += encode(Kind.FAILED, number, str(error).encode())
            return
        child = self._children.get(number)
        if child is None:
            return  # it has ended, and the client will hear so
        if kind is Kind.STDIN:
            child.pending += payload
            child.feed()
        elif kind is Kind.STDIN_END:
            child.ending = True
            child.feed()
        elif kind is Kind.SIGNAL:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.process.pid, struct.unpack("<i", payload)[0])

    def _pass_output(self, child: Child, descriptor: int) -> bool:
        """Whether there may be more."""
        try:
            data = os.read(descriptor, READ_SIZE)
        except BlockingIOError:
            return False
        if data:
            self._outgoing += encode(child.outputs[descriptor], child.number, data)
        else:
            del child.outputs[descriptor]
        return bool(data)

    def _end(self, child: Child) -> None:
        """Others may still hold its pipes; what is in them by now is all that counts."""
        for descriptor in list(child.outputs):
            while self._pass_output(child, descriptor):
                pass
        code = child.process.wait()
        child.close()
        del self._children[child.number]
        self._outgoing += encode(Kind.EXIT, child.number, struct.pack("<i", code))


def main() -> None:
    preload()
    while True:
        channel = Vchan.server(DOM0)
        try:
            Agent(channel).serve()
        finally:
            channel.close()
