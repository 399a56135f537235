"""Device models that tests ask for by `models.py:CLASS`: an echo that counts, and ones that misbehave."""

import builtins
import sys
import time
from pathlib import Path

from devices import ConfigSpace, Device, DeviceError, Hold, Queue, Request, le32, on_read, on_write


class EchoConfig(ConfigSpace):
    plain = le32(0, writable=True)
    hooked = le32(4, writable=True)
    computed = le32(8)


class Echo(Device):
    """Answers each request with its own bytes."""

    name = "echo"
    device_id = 0x42
    queues = (Queue("requestq", size=64),)
    config_space = EchoConfig
    config: EchoConfig

    def __init__(self, *, start: int = 0) -> None:
        super().__init__()
        self.config.plain = start

    @on_write("hooked")
    def set_hooked(self, value: int) -> None:
        if value == 0xBAD:
            raise ValueError("not that one")

    @on_read("computed")
    def compute(self) -> int:
        return self.config.plain + self.config.hooked

    def requestq(self, request: Request) -> Hold | None:
        request.write(request.readable[: request.writable_bytes])
        return None

    def update(self, *, start: int = 0) -> None:
        if start == 13:
            raise DeviceError("echo: start=13 brings bad luck")
        self.config.plain = start
        self.backend.config_changed()


class Misbehaving(Echo):
    """Raises an exception of the kind `what` in the method `where`, or sleeps there."""

    name = "misbehaving"

    def __init__(self, *, where: str = "", what: str = "ValueError", seconds: int = 10) -> None:
        super().__init__()
        self._where = where
        self._what = what
        self._seconds = seconds

    def _misbehave(self, where: str) -> None:
        if where != self._where:
            return
        if self._what == "sleep":
            time.sleep(self._seconds)
        elif self._what == "spin":
            while True:
                pass
        elif self._what == "recurse":
            self._misbehave(where)
        elif self._what == "NoText":
            raise NoTextError
        else:
            raise getattr(builtins, self._what)("on purpose")

    @on_write("hooked")
    def set_hooked(self, value: int) -> None:
        self._misbehave("on_write")

    @on_read("computed")
    def compute(self) -> int:
        self._misbehave("on_read")
        return 7

    def requestq(self, request: Request) -> Hold | None:
        self._misbehave("requestq")
        return super().requestq(request)

    def features_ok(self, features: int) -> None:
        self._misbehave("features_ok")

    def activate(self, features: int, queues: object) -> None:
        self._misbehave("activate")

    def reset(self) -> None:
        self._misbehave("reset")

    def open(self) -> None:
        self._misbehave("open")

    def close(self) -> None:
        self._misbehave("close")

    def update(self, *, start: int = 0) -> None:
        self._misbehave("update")


class Waiting(Echo):
    """Says when it is inside a config write to `hooked`, and stays there until somebody writes to the pipe `fifo`."""

    name = "waiting"

    def __init__(self, *, fifo: str) -> None:
        super().__init__()
        self._fifo = Path(fifo)

    @on_write("hooked")
    def set_hooked(self, value: int) -> None:
        print("inside a request", file=sys.stderr, flush=True)
        self._fifo.read_bytes()


class NoTextError(Exception):
    def __str__(self) -> str:
        raise SystemExit("no text either")

    __repr__ = __str__


class Rubbish(Echo):
    """Its handler returns, or leaves in the request, what `what` evaluates to."""

    name = "rubbish"

    def __init__(self, *, returns: str = "None", written: str = "") -> None:
        super().__init__()
        self._returns = returns
        self._written = written

    def requestq(self, request: Request) -> Hold | None:
        super().requestq(request)
        if self._written:
            request.written = eval(self._written)
        outcome: Hold | None = eval(self._returns)
        return outcome
