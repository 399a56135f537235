"""A machine as dom0 runs it: domains, the end of the broker, and the failures that tests ask for."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from cpp_ring.unix_socket import connect
from emulator.local import wire
from emulator.local.errors import MachineError
from emulator.local.wire import ANY, DOMAIN


class Control:
    """A connection to the broker of the machine in `directory`, to be used with `with`. Raises MachineError."""

    def __init__(self, directory: Path, timeout: float = 10.0) -> None:
        """ENOENT: there is no broker; ETIMEDOUT: it does not answer in `timeout` seconds; EPROTO: another version."""
        self._directory = directory
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connect(self._socket, directory / "dom0" / "hypervisor", timeout)
            self.pid = self._call(wire.HELLO, wire.VERSION).value
        except MachineError:
            self._socket.close()
            raise
        except OSError as error:
            self._socket.close()
            if isinstance(error, TimeoutError):
                raise self._silent() from None
            raise MachineError(
                errno.ENOENT, f"no local machine at {directory}: start one with `virtio-dm local {directory.name}`"
            ) from None

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def create_domain(self, domid: int) -> None:
        """Errors: EEXIST, EINVAL."""
        self._call(wire.DOMAIN_CREATE, domid, what=f"create domain {domid}")

    def destroy_domain(self, domid: int) -> None:
        """Errors: ENOENT, EINVAL (dom0)."""
        self._call(wire.DOMAIN_DESTROY, domid, what=f"destroy domain {domid}")

    def domains(self) -> list[int]:
        """Domids in order."""
        reply = self._call(wire.DOMAIN_LIST, what="list domains")
        return [domid for (domid,) in DOMAIN.iter_unpack(reply.records)]

    def stop(self) -> None:
        """Ends the broker; returns when it has let go of the machine."""
        self._call(wire.STOP, what="stop")
        try:
            self._socket.recv(1)
        except TimeoutError:
            raise self._silent() from None
        except OSError:
            return

    def fail(self, op: int, error: int, *, after: int = 0, times: int = 1, domid: int = ANY) -> None:
        """After `after` more operations `op` (wire.GRANT_MAP, ..., ANY) of `domid`, `times` of them get `error`."""
        self._call(wire.PLAN_FAULT, op, domid, after, times, error, 0, what="plan")

    def delay(self, op: int, milliseconds: int, *, after: int = 0, times: int = ANY, domid: int = ANY) -> None:
        """The same, with answers that come late."""
        self._call(wire.PLAN_FAULT, op, domid, after, times, 0, milliseconds, what="plan")

    def storm(self, domid: int, port: int, count: int) -> None:
        """Raises `count` events of a port, as fast as the broker can. Errors: ENOENT, EINVAL (no such port)."""
        self._call(wire.PLAN_STORM, domid, port, count, what=f"storm port {port} of domain {domid}")

    def clear(self) -> None:
        """Ends all planned failures."""
        self._call(wire.PLAN_CLEAR, what="plan")

    def _call(self, op: int, *arguments: int, what: str = "connect") -> wire.Reply:
        try:
            return wire.exchange(self._socket, op, *arguments)
        except TimeoutError:
            raise self._silent() from None
        except OSError as error:
            number = error.errno or errno.ECONNRESET
            if number == errno.EPROTO:
                text = f"the broker of {self._directory} is of another version: stop it and try again"
            else:
                text = f"{self._directory}: cannot {what}: {os.strerror(number).lower()}"
            raise MachineError(number, text) from None

    def _silent(self) -> MachineError:
        return MachineError(
            errno.ETIMEDOUT,
            f"the broker of {self._directory} does not answer: end the process in {self._directory / 'lock'}",
        )
