"""A backend made by hand of mapped pages, ports and store nodes, without the engine's backend half: it can lie.

`RawBackend` is one device of a domain: toolstack, xenbus half and config ring; a ScriptedDevice answers.
"""

from __future__ import annotations

import contextlib
import select
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from cpp_ring import EventChannels, HostError, Hypervisor, LocalHypervisor, MappedPages
from cpp_ring.store import Store, StoreError
from emulator.local import ensure_broker, stop
from guest.xenbus import State
from tests.scripted_device import ScriptedDevice

MAGIC_BE = 0x45426D76
SEQ, SIZE, MESSAGE = 0x40, 0x44, 0x48
HEADER = struct.Struct("<BBHHH")
PATIENCE = 10.0


@contextlib.contextmanager
def local_machine() -> Iterator[Path]:
    """The directory of a machine of its own, named "m", which commands find while this lasts."""
    with tempfile.TemporaryDirectory(prefix="vdm-") as base, pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIRTIO_DM_RUNTIME_DIR", base)
        directory = ensure_broker("m")
        try:
            yield directory
        finally:
            stop("m")


class RawBackend:
    """One device of `frontend` in a local machine, served from a thread between `start` (or `with`) and `stop`.

    `hypervisor`: dom0's, if the machine is not the local one in `directory`; then `open_store` is another, too.
    """

    def __init__(
        self,
        directory: Path,
        device: ScriptedDevice,
        *,
        frontend: int = 1,
        number: int = 0,
        hypervisor: Hypervisor | None = None,
    ) -> None:
        self.directory = directory
        self.device = device
        self.frontend = frontend
        self.hypervisor = hypervisor or LocalHypervisor(str(directory), 0)
        self._stores = threading.local()
        self.frontend_path = f"/local/domain/{frontend}/device/virtio-msg/{number}"
        self.path = f"/local/domain/0/backend/virtio-msg/{frontend}/{number}"
        self.events = EventChannels(self.hypervisor)
        self.port = 0
        self.fe: MappedPages | None = None
        self.be: MappedPages | None = None
        self.queue_ports: dict[int, int] = {}
        self.answered = 0
        self.connections = 0
        self._connected_to: str | None = None
        self.held = False
        self.corrupt: Callable[[bytearray], bytes | bytearray | None] = lambda message: message
        """Last word on an answer, header included; None: say nothing."""
        self._failure: BaseException | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._main, name="raw backend")

    @property
    def store(self) -> Store:
        """The calling thread's own connection, as dom0."""
        if not hasattr(self._stores, "store"):
            self._stores.store = self.open_store()
        store: Store = self._stores.store
        return store

    def open_store(self) -> Store:
        return Store.open(self.directory / "dom0" / "xenstored")

    # ---- toolstack and xenbus ----

    def attach(self, **nodes: str) -> None:
        """Makes both directories, the backend in InitWait; `nodes` of the backend differ from the honest ones."""
        honest = {
            "frontend": self.frontend_path,
            "frontend-id": str(self.frontend),
            "online": "1",
            "versions": "1",
            "device-id": str(self.device.device_id),
            "max-queues": str(len(self.device.queue_sizes)),
            "state": str(int(State.INIT_WAIT)),
        }
        ours = honest | {name.replace("_", "-"): value for name, value in nodes.items()}
        theirs = {"backend": self.path, "backend-id": "0", "state": "1"}
        directories = (
            (self.path, ours, ["n0", f"r{self.frontend}"]),
            (self.frontend_path, theirs, [f"n{self.frontend}", "r0"]),
        )
        for path, entries, permissions in directories:
            self.store.mkdir(path)
            self.store.set_perms(path, permissions)
            for name, value in entries.items():
                self.store.write(f"{path}/{name}", value)
                self.store.set_perms(f"{path}/{name}", permissions)

    def set_state(self, state: State) -> None:
        self.store.write(f"{self.path}/state", str(int(state)))

    def frontend_node(self, name: str) -> str | None:
        return self.store.read_optional(f"{self.frontend_path}/{name}")

    def frontend_state(self) -> State:
        return State(int(self.frontend_node("state") or 0))

    def await_frontend(self, *states: State) -> bool:
        """False when stop() came first."""
        deadline = time.monotonic() + PATIENCE
        while self.frontend_state() not in states:
            assert time.monotonic() < deadline, f"the frontend stays {self.frontend_state().name}"
            if self._stopping.is_set():
                return False
            self.store.next_event(0.01)
        return True

    # ---- config ring ----

    def connect(self) -> None:
        """Maps what the frontend offered, writes the header, goes to Connected."""
        self._connected_to = self.frontend_node("fe-to-be-ref")
        self.fe = self.hypervisor.map(self.frontend, int(self._connected_to or 0), 1, False)
        self.be = self.hypervisor.map(self.frontend, int(self.frontend_node("be-to-fe-ref") or 0), 1)
        self.port = self.events.bind_interdomain(self.frontend, int(self.frontend_node("event-channel") or 0))
        self.answered = 0
        self.queue_ports.clear()
        self.connections += 1
        self.write_header()
        self.set_state(State.CONNECTED)

    def write_header(self, magic: int = MAGIC_BE, version: int = 1, live: int = 1) -> None:
        # be_waiting stays 1: this backend always wants its event.
        self.page[:24] = struct.pack("<IIIIII", magic, version, live, 1, 0, 0)

    def queue_port(self, index: int) -> int:
        """Our end of the event channel of a virtqueue; it stays for the connection."""
        if index not in self.queue_ports:
            remote = int(self.frontend_node(f"queue-{index}/event-channel") or 0)
            self.queue_ports[index] = self.events.bind_interdomain(self.frontend, remote)
        return self.queue_ports[index]

    @property
    def page(self) -> memoryview:
        """The be-to-fe page."""
        assert self.be is not None
        return self.be.memory

    def word(self, offset: int, value: int) -> None:
        self.page[offset : offset + 4] = struct.pack("<I", value)

    def notify(self) -> None:
        self.events.notify(self.port)

    def set_status(self, status: int) -> None:
        """The mirror in the header, and an event."""
        self.word(0x10, status)
        self.notify()

    def set_generation(self, generation: int) -> None:
        self.device.generation = generation
        self.word(0x14, generation)
        self.notify()

    def die(self) -> None:
        """As when the process ends."""
        self.page[8] = 0
        self.notify()

    def request(self) -> tuple[int, bytes] | None:
        """(seq, message) of the next request."""
        assert self.fe is not None
        memory = self.fe.memory
        (seq,) = struct.unpack("<I", memory[SEQ:SIZE])
        if seq == self.answered:
            return None
        (size,) = struct.unpack("<I", memory[SIZE:MESSAGE])
        return seq, bytes(memory[MESSAGE : MESSAGE + size])

    def respond(self, seq: int, message: bytes | bytearray, size: int | None = None) -> None:
        """Publishes a slot."""
        self.page[MESSAGE : MESSAGE + len(message)] = message
        self.word(SIZE, len(message) if size is None else size)
        self.word(SEQ, seq)
        self.notify()

    def answer_one(self) -> bool:
        """Answers the request that is there; False when there is none."""
        if self.held or (request := self.request()) is None:
            return False
        seq, message = request
        self.answered = seq
        _, msg_id, _, token, _ = HEADER.unpack_from(message)
        payload = self.device.answer(msg_id, message[HEADER.size :])
        answer = bytearray(HEADER.pack(1, msg_id, 0, token, HEADER.size + len(payload))) + payload
        corrupted = self.corrupt(answer)
        if corrupted is not None:
            self.respond(seq, corrupted)
        return True

    # ---- thread ----

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; raises what went wrong in it."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(PATIENCE)
            assert not self._thread.is_alive()
        # A domain cannot vanish while its pages are mapped, and `corrupt` may well refer to us, who refer to it.
        self.fe = self.be = None
        for path in (self.frontend_path, self.path):
            with contextlib.suppress(StoreError):
                self.store.rm(path)
        self.store.close()
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.stop()
        else:
            with contextlib.suppress(BaseException):
                self.stop()

    def _main(self) -> None:
        try:
            with self.store as store:
                store.watch(self.frontend_path, "frontend")
                self.run()
        except BaseException as error:
            self._failure = error

    def run(self) -> None:
        """Waits for the frontend, connects, answers; again after each reconnect."""
        while not self._stopping.is_set():
            if not self._await_offer():
                return
            self._serve()
            if not self._stopping.is_set():
                self.set_state(State.INIT_WAIT)

    def _await_offer(self) -> bool:
        """Connected to what the frontend offers; False when stop() came first."""
        deadline = time.monotonic() + PATIENCE
        while not self._stopping.is_set() and self.await_frontend(State.INITIALISED):
            try:
                self.connect()
            except HostError:
                # It starts over, and its nodes are those of before: another offer comes, or stop().
                if time.monotonic() > deadline:
                    raise
                self.store.next_event(0.05)
            else:
                return True
        return False

    def _serve(self) -> None:
        poller = select.poll()
        poller.register(self.events.fileno(), select.POLLIN)
        poller.register(self.store.fileno(), select.POLLIN)
        while not self._stopping.is_set():
            poller.poll(10)
            while (port := self.events.pending()) is not None:
                self.events.unmask(port)
            while self.answer_one():
                pass
            self.idle()
            self.store.events()
            # A frontend that starts over may have passed through Initialising unseen; its pages are others then, since
            # references that we still map are not given again.
            offers = self.frontend_node("fe-to-be-ref")
            if self.frontend_state() not in (State.INITIALISED, State.CONNECTED) or offers != self._connected_to:
                return

    def idle(self) -> None:
        """Called after every event: a test's device works on its queues here."""
