"""What a toolstack does with devices, all through the store: attach, detach, update, list."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, TypeVar

from cpp_ring.store import Store, StoreError, Transaction
from cpp_ring.store_values import parse_u32, quote
from emulator import lock
from emulator.backend_nodes import remove, remove_within
from emulator.exit_codes import ExitCode, Failure
from emulator.frontend_nodes import NodeError, read_state
from emulator.machine import Machine, require_domain
from emulator.spec import Spec, SpecError, format_options, parse
from emulator.store_paths import State, all_backends_dir, backend_dir, backends_dir, children, frontend_dir
from emulator.xenbus_device import PATIENCE_SECONDS

ANSWER_SECONDS: Final = 10.0
REMOVE_SECONDS: Final = PATIENCE_SECONDS + 5.0
LOOK_SECONDS: Final = 0.2


def attach(store: Store, backend: int, frontend: int, spec: Spec, devid: int | None = None) -> int:
    """Adds a device under the lowest free number, or `devid`; returns it. Raises Failure, StoreError."""

    def change(nodes: Transaction) -> int:
        used = {int(name) for name in children(nodes, backends_dir(backend, frontend)) if name.isdecimal()}
        if devid in used:
            raise Failure(ExitCode.REFUSED, f"domain {frontend} has a device {devid} already; detach it first")
        number = next(n for n in range(len(used) + 1) if n not in used) if devid is None else devid
        _write_device(nodes, backend, frontend, spec, number)
        return number

    with _as_toolstack(backend, frontend):
        return store.transact(change)


def attach_all(store: Store, backend: int, frontend: int, specs: Sequence[Spec]) -> frozenset[int]:
    """The devices of one run of the emulator: device i as number i; returns those that are to end with it.

    What an earlier run left, which was killed, is removed or, with the same specification, taken over as it is. A
    device that somebody attached, and that is the same, is served but stays. Raises Failure, StoreError.
    """

    def change(nodes: Transaction) -> frozenset[int]:
        transient = set()
        for devid in _numbers(nodes, backends_dir(backend, frontend)):
            directory = backend_dir(backend, frontend, devid)
            left = nodes.read_optional(f"{directory}/transient") is not None
            if left and (devid >= len(specs) or nodes.read_optional(f"{directory}/spec") != str(specs[devid])):
                remove_within(nodes, backend, frontend, devid)
        for devid, spec in enumerate(specs):
            directory = backend_dir(backend, frontend, devid)
            there = nodes.read_optional(f"{directory}/spec")
            if there is None or nodes.read_optional(f"{directory}/online") == "0":
                _write_device(nodes, backend, frontend, spec, devid)
                nodes.write(f"{directory}/transient", "1")
            elif there != str(spec):
                raise Failure(
                    ExitCode.REFUSED,
                    f"domain {frontend} has another device {devid}: {there!r}; "
                    f"`virtio-dm detach {frontend} {devid}` removes it",
                )
            if nodes.read_optional(f"{directory}/transient") is not None:
                transient.add(devid)
        return frozenset(transient)

    with _as_toolstack(backend, frontend):
        return store.transact(change)


@contextlib.contextmanager
def _as_toolstack(backend: int, frontend: int) -> Iterator[None]:
    """Only dom0 may write where both sides of a device look. Raises Failure in another domain."""
    try:
        yield
    except StoreError as error:
        if error.errno != errno.EACCES:
            raise
        raise Failure(
            ExitCode.NOT_PERMITTED,
            f"only dom0 may add devices; there: `virtio-dm attach --backend {backend} {frontend} SPEC`",
        ) from error


def _write_device(nodes: Transaction, backend: int, frontend: int, spec: Spec, devid: int) -> None:
    ours, theirs = backend_dir(backend, frontend, devid), frontend_dir(frontend, devid)
    # The backend's to remove with its last device, also in a driver domain.
    nodes.mkdir(backends_dir(backend, frontend))
    nodes.set_perms(backends_dir(backend, frontend), [f"n{backend}", f"r{frontend}"])
    toolstack = "n0"
    for directory, perms in ((ours, [f"n{backend}", f"r{frontend}"]), (theirs, [f"n{frontend}", f"r{backend}"])):
        if children(nodes, directory):
            nodes.rm(directory)
        nodes.mkdir(directory)
        nodes.set_perms(directory, perms)
    values = {
        f"{ours}/frontend": theirs,
        f"{ours}/frontend-id": str(frontend),
        f"{ours}/online": "1",
        f"{ours}/state": str(int(State.INITIALISING)),
        f"{ours}/spec": str(spec),
        f"{theirs}/backend": ours,
        f"{theirs}/backend-id": str(backend),
        f"{theirs}/state": str(int(State.INITIALISING)),
    }
    for path, value in values.items():
        nodes.write(path, value)
    nodes.set_perms(f"{ours}/spec", [f"n{backend}"])
    for name in ("backend", "backend-id"):
        nodes.set_perms(f"{theirs}/{name}", [toolstack, f"r{frontend}", f"r{backend}"])


def await_ready(machine: Machine, store: Store, frontend: int, devid: int) -> bool:
    """Waits until the emulator has built the device; False if none runs nor will. Raises Failure, StoreError."""
    directory = backend_dir(machine.backend, frontend, devid)
    for _ in _looks(store, directory, ANSWER_SECONDS):
        error = store.read_optional(f"{directory}/error")
        if error is not None:
            remove(store, machine.backend, frontend, devid)
            raise Failure(ExitCode.REFUSED, f"the emulator of domain {frontend} refused: {_shown(error)}")
        if _state(store, directory) not in (State.INITIALISING, State.UNKNOWN):
            return True
        if not (machine.elsewhere or emulator_pid(machine, frontend) or lock.holder(_supervisor_lock(machine))):
            return False
    raise Failure(
        ExitCode.TIMED_OUT,
        f"device {devid} is attached, but the emulator of domain {frontend} did not build it in {ANSWER_SECONDS:g} s; "
        f"`virtio-dm detach {frontend} {devid}` takes it away",
    )


def detach(machine: Machine, store: Store, frontend: int, devid: int, wait: bool = True) -> None:
    """Takes a device away; without an emulator at once. Raises Failure, StoreError."""
    directory = backend_dir(machine.backend, frontend, devid)

    if _orphaned(machine, store, frontend, devid):
        remove(store, machine.backend, frontend, devid)
        return

    def change(nodes: Transaction) -> None:
        _require_device(machine, store, nodes, frontend, devid)
        nodes.write(f"{directory}/online", "0")
        nodes.write(f"{directory}/state", str(int(State.CLOSING)))

    store.transact(change)
    if not wait:
        return
    for _ in _looks(store, directory, REMOVE_SECONDS):
        gone = store.read_optional(f"{directory}/frontend-id") is None
        if gone and not machine.elsewhere:
            return
        if gone or not (machine.elsewhere or emulator_pid(machine, frontend)):
            remove(store, machine.backend, frontend, devid)
            return
    if machine.elsewhere:  # nobody there answers: dom0 may remove what it made
        remove(store, machine.backend, frontend, devid)
        return
    raise Failure(
        ExitCode.TIMED_OUT, f"device {devid} of domain {frontend} does not end: its model is stuck; end its emulator"
    )


def update(machine: Machine, store: Store, frontend: int, devid: int, options: dict[str, str]) -> None:
    """Changes options of a live device. Raises Failure, StoreError."""
    directory = backend_dir(machine.backend, frontend, devid)
    node = f"{directory}/update"
    if not (machine.elsewhere or emulator_pid(machine, frontend)):
        _require_device(machine, store, store, frontend, devid)
        raise Failure(ExitCode.REFUSED, f"no emulator serves domain {frontend}; start one, then update")

    def change(nodes: Transaction) -> None:
        _require_device(machine, store, nodes, frontend, devid)
        if nodes.read_optional(node) is not None:
            raise Failure(ExitCode.REFUSED, f"device {devid} of domain {frontend} is being updated; try again")
        nodes.write(node, format_options(options))
        nodes.set_perms(node, [f"n{machine.backend}"])

    store.transact(change)
    for _ in _looks(store, directory, ANSWER_SECONDS):
        if store.read_optional(node) is None:
            error = store.read_optional(f"{directory}/error") or ""
            if error.startswith("update "):
                raise Failure(ExitCode.REFUSED, _shown(error.removeprefix("update ")))
            return
    raise Failure(ExitCode.TIMED_OUT, f"device {devid} of domain {frontend} did not answer in {ANSWER_SECONDS:g} s")


@dataclass(frozen=True, slots=True)
class Entry:
    """A device as the store shows it. States: xenbus names in lower case; pid: its emulator's, if it has one."""

    domid: int
    devid: int
    model: str
    spec: str
    backend_state: str
    frontend_state: str
    device_id: int | None
    error: str | None
    pid: int | None

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def entries(machine: Machine, store: Store) -> list[Entry]:
    """All devices of all domains, in order. Raises StoreError."""
    result = []
    for domid in _numbers(store, all_backends_dir(machine.backend)):
        pid = emulator_pid(machine, domid)
        for devid in _numbers(store, backends_dir(machine.backend, domid)):
            directory = backend_dir(machine.backend, domid, devid)
            spec = store.read_optional(f"{directory}/spec")
            if spec is None:
                continue
            try:
                model = parse(spec).model
            except SpecError:
                model = ""
            result.append(
                Entry(
                    domid,
                    devid,
                    model,
                    _shown(spec),
                    _state(store, directory).name.lower(),
                    _state(store, frontend_dir(domid, devid)).name.lower(),
                    _device_id(store.read_optional(f"{directory}/device-id")),
                    _shown(store.read_optional(f"{directory}/error")),
                    pid,
                )
            )
    return result


def spec_of(machine: Machine, store: Store, frontend: int, devid: int) -> Spec | None:
    """The specification of a device; None if there is none that can be read. Raises StoreError."""
    text = store.read_optional(f"{backend_dir(machine.backend, frontend, devid)}/spec")
    try:
        return None if text is None else parse(text)
    except SpecError:
        return None


def user_of(machine: Machine, store: Store, path: Path) -> Entry | None:
    """The device that is served and whose options name that file; None if there is none. Raises StoreError."""
    for entry in entries(machine, store):
        if entry.pid is None or entry.backend_state == State.CLOSED.name.lower():
            continue
        with contextlib.suppress(SpecError):
            if any(os.path.realpath(value) == os.path.realpath(path) for _, value in parse(entry.spec).options):
                return entry
    return None


def emulator_pid(machine: Machine, domid: int) -> int | None:
    """The process that serves the domain; None if there is none, or it runs in another domain."""
    return None if machine.elsewhere else lock.holder(lock.emulator_lock(machine.domain_directory(domid)))


def _supervisor_lock(machine: Machine) -> Path:
    return lock.supervisor_lock(machine.directory)


def _looks(store: Store, directory: str, seconds: float) -> Iterator[None]:
    """One at the start, one at each change below the directory, and one now and then, until the time is over."""
    token = f"wait-{os.getpid()}"
    deadline = time.monotonic() + seconds
    store.watch(directory, token)
    try:
        while (left := deadline - time.monotonic()) > 0:
            yield
            store.next_event(min(LOOK_SECONDS, left))
            store.events()
    finally:
        store.unwatch(directory, token)


def _orphaned(machine: Machine, store: Store, frontend: int, devid: int) -> bool:
    """Is the frontend's directory all that is left of a device whose driver domain is gone?"""
    ours = backend_dir(machine.backend, frontend, devid)
    return (
        machine.elsewhere
        and store.read_optional(f"{ours}/frontend-id") is None
        and store.read_optional(f"{frontend_dir(frontend, devid)}/backend") == ours
    )


def _require_device(machine: Machine, store: Store, nodes: Store | Transaction, frontend: int, devid: int) -> None:
    """Also of a domain that is gone: what it left can be removed."""
    if nodes.read_optional(f"{backend_dir(machine.backend, frontend, devid)}/frontend-id") is None:
        require_domain(machine, store, frontend)
        raise Failure(ExitCode.NO_DEVICE, f"domain {frontend} has no device {devid}; `virtio-dm list` shows all")


def _state(store: Store, directory: str) -> State:
    try:
        return read_state(store, directory)
    except NodeError:
        return State.UNKNOWN


def _device_id(text: str | None) -> int | None:
    try:
        return None if text is None else parse_u32(text)
    except ValueError:
        return None


Text = TypeVar("Text", str, str | None)


def _shown(text: Text) -> Text:
    """A text that a driver domain may have written, for a terminal."""
    return text if text is None or text.isprintable() else quote(text, 512)[1:-1]


def _numbers(store: Store | Transaction, directory: str) -> list[int]:
    numbers = []
    for name in children(store, directory):
        try:
            numbers.append(parse_u32(name, 65535))
        except ValueError:
            continue
    return sorted(numbers)
