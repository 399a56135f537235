"""The backend's directory of one device in the store: what the toolstack wants, and what we report."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cpp_ring.store import Store, StoreError, Transaction
from emulator.frontend_nodes import PROTOCOL_VERSION, NodeError, read_state
from emulator.store_paths import State, backend_dir, backends_dir, children, frontend_dir

MAX_ERROR_LENGTH: Final = 512


@dataclass(frozen=True, slots=True)
class Built:
    """What the frontend may know of a device before it connects."""

    name: str
    device_id: int
    max_queues: int


@dataclass(frozen=True, slots=True)
class Value:
    """What a node is to be: None, not there. `private`: readable by the backend's domain alone, and dom0."""

    content: str | bytes | None
    private: bool = False


class BackendNodes:
    """Device `devid` that `backend` serves to `frontend`. Methods raise StoreError.

    What the store refuses to take is owed: it is written with the next change, or by `settle`.
    """

    def __init__(self, store: Store, backend: int, frontend: int, devid: int) -> None:
        self._store = store
        self._backend = backend
        self._frontend = frontend
        self._devid = devid
        self._owner = f"n{backend}"
        self._owed: dict[str, Value] = {}
        self.directory = backend_dir(backend, frontend, devid)
        self.frontend_directory = frontend_dir(frontend, devid)

    def exists(self) -> bool:
        return self.read("frontend-id") is not None

    def frontend_exists(self) -> bool:
        """Whether the toolstack's nodes in the frontend's directory are there; with its domain they go.

        A domain that is gone hides what it had from a driver domain.
        """
        if self._backend == 0:
            return True  # dom0 is told of domains that end, and of nothing else it needs to know
        try:
            return self._store.read_optional(f"{self.frontend_directory}/backend") is not None
        except StoreError as error:
            if error.errno == errno.EACCES:
                return False
            raise

    def read(self, node: str) -> str | None:
        return self._store.read_optional(f"{self.directory}/{node}")

    def state(self) -> State:
        """What the last emulator left; UNKNOWN if that is nonsense."""
        try:
            return read_state(self._store, self.directory)
        except NodeError:
            return State.UNKNOWN

    def write_state(self, state: State) -> None:
        self._write(state=Value(str(int(state))))

    def write_error(self, error: str | None, *, private: bool = False, state: State | None = None) -> None:
        """The reason the device is closed, or None when there is none any more; with it, in one step, the state.

        `private`: the reason names things of the host, which are none of the guest's business.
        """
        values = {"error": _error(error, private)}
        if state is not None:
            values["state"] = Value(str(int(state)))
        self._write(**values)

    def write_description(self, built: Built) -> None:
        """What the frontend needs to know before it connects."""
        values = {"versions": PROTOCOL_VERSION, "device-id": built.device_id, "max-queues": built.max_queues}
        self._write(**{name: Value(str(value)) for name, value in values.items()})

    def finish_update(self, error: str | None, spec: str | None) -> None:
        """The update is done, or refused with a reason. `spec`: what to build from here on."""
        values = {"update": Value(None), "error": _error(f"update {error}" if error else None, private=True)}
        if spec is not None:
            values["spec"] = Value(spec)
        self._write(**values)

    def owes(self, node: str) -> bool:
        """Whether the store has refused to take what we have to say of `node`."""
        return node in self._owed

    def settle(self) -> None:
        """Writes what the store has refused to take, if there is anything."""
        if self._owed:
            self._store.transact(lambda nodes: self._change(nodes, self._owed))
            self._owed.clear()

    def remove(self) -> None:
        remove(self._store, self._backend, self._frontend, self._devid)

    def _write(self, **values: Value) -> None:
        """Changes nodes at once, with those that were refused before, or without if they are refused again."""
        before = self._owed.keys() - values.keys()
        self._owed |= values
        try:
            self.settle()
        except StoreError:
            if not before:
                raise
            # A quota may refuse one node for good, which must not keep the device from its end.
            self._store.transact(lambda nodes: self._change(nodes, values))
            self._owed = {name: self._owed[name] for name in before}

    def _change(self, nodes: Transaction, values: Mapping[str, Value]) -> None:
        if nodes.read_optional(f"{self.directory}/frontend-id") is None:
            return  # the toolstack removed the directory: a write would bring a part of it back
        for name, value in values.items():
            path = f"{self.directory}/{name}"
            if value.content is None or name == "error":  # the error before may have been private, or not
                nodes.rm(path)
            if value.content is not None:
                nodes.write(path, value.content)
                if value.private:
                    nodes.set_perms(path, [self._owner])


def _error(text: str | None, private: bool) -> Value:
    return Value(text.encode(errors="replace")[:MAX_ERROR_LENGTH] if text else None, private)


def remove(store: Store, backend: int, frontend: int, devid: int) -> None:
    """Removes both directories at once: nobody sees the one without the other, or removes what is attached meanwhile.

    A driver domain may not remove the frontend's: the toolstack, which waits for its own to go, does.
    """
    store.transact(lambda nodes: remove_within(nodes, backend, frontend, devid))


def remove_within(nodes: Transaction, backend: int, frontend: int, devid: int) -> None:
    """`remove` as a part of a larger change."""
    _remove(nodes, frontend_dir(frontend, devid), errno.EACCES)
    _remove(nodes, backend_dir(backend, frontend, devid))
    root = backends_dir(backend, frontend)
    if not children(nodes, root):
        _remove(nodes, root, errno.EACCES)  # else it would stay for each domain there ever was


def remove_domain(store: Store, backend: int, frontend: int) -> None:
    """Removes what is left of all devices of a domain that is gone. Raises StoreError."""
    _remove(store, backends_dir(backend, frontend))


def _remove(nodes: Store | Transaction, directory: str, *allowed: int) -> None:
    try:
        nodes.rm(directory)
    except StoreError as error:
        if error.errno not in (errno.ENOENT, *allowed):
            raise
