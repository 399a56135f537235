"""dom0's end: processes in a domU as objects. One thread a domU moves the bytes."""

from __future__ import annotations

import contextlib
import json
import os
import select
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Final

from scripts.xen_rig.domu_agent.frames import Decoder, Kind, encode
from scripts.xen_rig.domu_agent.vchan import Vchan, VchanError

CONNECT_POLL: Final = 0.05
CHUNK: Final = 1 << 16


class DomuGone(Exception):
    """The domU or its agent is no longer there, or never came."""


class RemoteProcess:
    """A process in the domU. All waiting has a limit: TimeoutError is raised after `timeout` seconds."""

    def __init__(self, client: Client, number: int, name: str) -> None:
        self._client = client
        self._number = number
        self._name = name
        self._changed = threading.Condition()
        self._stdout = bytearray()
        self._stderr = bytearray()
        self._code: int | None = None
        self._failure: str | None = None

    @property
    def stderr(self) -> bytes:
        """What it has written there so far."""
        with self._changed:
            return bytes(self._stderr)

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative: it died of a signal."""
        return self._code

    def write(self, data: bytes) -> None:
        for at in range(0, len(data), CHUNK):
            self._client.send(encode(Kind.STDIN, self._number, data[at : at + CHUNK]))

    def close_stdin(self) -> None:
        self._client.send(encode(Kind.STDIN_END, self._number))

    def send_signal(self, number: int) -> None:
        """To it and what it has started."""
        self._client.send(encode(Kind.SIGNAL, self._number, struct.pack("<i", number)))

    def read_line(self, timeout: float = 30.0) -> bytes:
        """With its end; b"" once the output has ended."""
        self._wait(lambda: b"\n" in self._stdout, timeout, "a line")
        with self._changed:
            end = self._stdout.find(b"\n") + 1 or len(self._stdout)
            line = bytes(self._stdout[:end])
            del self._stdout[:end]
            return line

    def read_all(self, timeout: float = 60.0) -> bytes:
        """The rest of the output, once the process has ended."""
        self.wait(timeout)
        with self._changed:
            rest = bytes(self._stdout)
            self._stdout.clear()
            return rest

    def wait(self, timeout: float = 60.0) -> int:
        """Its exit code."""
        self._wait(lambda: self._code is not None, timeout, "its end")
        assert self._code is not None
        return self._code

    def deliver(self, kind: Kind, payload: bytes) -> None:
        """By the thread."""
        with self._changed:
            if kind is Kind.STDOUT:
                self._stdout += payload
            elif kind is Kind.STDERR:
                self._stderr += payload
            elif kind is Kind.EXIT:
                self._code = struct.unpack("<i", payload)[0]
            elif kind is Kind.FAILED:
                self._failure = payload.decode()
            self._changed.notify_all()

    def _wait(self, condition: object, timeout: float, what: str) -> None:
        assert callable(condition)
        with self._changed:

            def over() -> bool:
                return bool(condition()) or self._code is not None or self._failure is not None

            if not self._changed.wait_for(over, timeout):
                said = self._stderr.decode(errors="replace")[-2000:]
                raise TimeoutError(f"{self._name}: no sign of {what} in {timeout:g} s; its stderr: {said!r}")
            if condition() or self._failure is None:
                return
            raise DomuGone(f"{self._name}: {self._failure}")


class Client:
    """The agent of domain `domid`. Raises DomuGone if it does not answer in `timeout` seconds."""

    def __init__(self, domid: int, timeout: float = 60.0) -> None:
        self._domid = domid
        self._processes: dict[int, RemoteProcess] = {}
        self._count = 0
        self._lock = threading.Lock()
        self._outgoing = bytearray()
        self._decoder = Decoder()
        self._ready = threading.Event()
        self._ended: str | None = None
        deadline = time.monotonic() + timeout
        self._channel = self._connect(deadline)
        self._wake_read, self._wake_write = os.pipe()
        self._thread = threading.Thread(target=self._run, name=f"domu-{domid}", daemon=True)
        self._thread.start()
        if not self._ready.wait(max(0.0, deadline - time.monotonic())):
            self.close()
            raise DomuGone(f"the agent of domain {domid} did not answer in {timeout:g} s")

    def start(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str] | None = None,
        directory: str | None = None,
        *,
        merged: bool = False,
    ) -> RemoteProcess:
        """`merged`: its standard error comes with its standard output."""
        with self._lock:
            self._count += 1
            number = self._count
            process = self._processes[number] = RemoteProcess(self, number, " ".join(argv))
        order = {"argv": list(argv), "environment": dict(environment or {}), "directory": directory, "merged": merged}
        self.send(encode(Kind.START, number, json.dumps(order).encode()))
        return process

    def send(self, frame: bytes) -> None:
        with self._lock:
            if self._ended is not None:
                raise DomuGone(self._ended)
            self._outgoing += frame
        os.write(self._wake_write, b"!")

    def close(self) -> None:
        """Lets go of the domU's pages. Processes that run in the domU are killed by its agent. Twice is once."""
        with self._lock:
            if self._ended is None:
                self._ended = f"the connection to domain {self._domid} is closed"
        if self._thread.is_alive():
            os.write(self._wake_write, b"!")
            self._thread.join()
        if self._wake_read >= 0:
            os.close(self._wake_read)
            os.close(self._wake_write)
            self._wake_read = self._wake_write = -1

    def _connect(self, deadline: float) -> Vchan:
        while True:
            try:
                return Vchan.client(self._domid)
            except VchanError as error:
                if time.monotonic() > deadline:
                    raise DomuGone(f"no agent in domain {self._domid}: {error}") from error
            time.sleep(CONNECT_POLL)

    def _run(self) -> None:
        reason = f"the agent of domain {self._domid} is gone"
        try:
            with contextlib.suppress(VchanError):
                while self._ended is None and self._exchange():
                    self._wait()
        finally:
            with self._lock:
                self._ended = self._ended or reason
                processes = list(self._processes.values())
            self._channel.close()
            for process in processes:
                if process.returncode is None:
                    process.deliver(Kind.FAILED, self._ended.encode())

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        ready = [descriptor for descriptor, _ in poll.poll()]
        if self._wake_read in ready:
            os.read(self._wake_read, 4096)
        if self._channel.fileno() in ready:
            self._channel.acknowledge()

    def _exchange(self) -> bool:
        """False once the other end has closed."""
        while data := self._channel.read():
            for kind, number, payload in self._decoder.feed(data):
                self._ready.set()
                process = self._processes.get(number)
                if process is not None:
                    process.deliver(kind, payload)
        with self._lock:
            while self._outgoing and (count := self._channel.write(bytes(self._outgoing[:CHUNK]))) > 0:
                del self._outgoing[:count]
        return data is not None
