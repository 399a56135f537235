"""One device's xenbus life, backend side: docs/protocol.md section 4. Runs in the main thread and never waits."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from cpp_ring.store import Store, StoreError
from emulator.advice import explain
from emulator.backend_nodes import BackendNodes, Built
from emulator.device_thread import DeviceThread
from emulator.driver_wait import DriverWait
from emulator.frontend_nodes import NodeError, read_channel, read_state
from emulator.loop import EventLoop, Timer
from emulator.phase import STATES, Phase
from emulator.poll import Polling
from emulator.posted_listener import PostedListener
from emulator.store_paths import State

if TYPE_CHECKING:
    from cpp_ring import Hypervisor

PATIENCE_SECONDS = 5.0
ERROR_NODE_SECONDS = 1.0
RETRY_SECONDS = 1.0
"""Until what the store refused is tried again: a quota that is used up, a transaction that always lost."""
LAST_ATTEMPTS = 3
"""To write what a device that has ended leaves."""
NEEDS_RESET = 64
STORE_GONE = (errno.ETIMEDOUT, errno.ECONNRESET, errno.EPROTO, errno.ENOTCONN, errno.EPIPE)


class XenbusDevice:
    """The backend of device `devid` of `frontend`. `gone` is called when it has ended, `not_built` with the devid and
    the reason when its model cannot be made; another spec, or an update without options, then tries again.

    `step` looks at the store and does what is due; whoever sees a change calls it, through `handle`.
    """

    def __init__(
        self,
        loop: EventLoop,
        store: Store,
        hypervisor: Hypervisor,
        *,
        backend: int,
        frontend: int,
        devid: int,
        polling: Polling,
        gone: Callable[[XenbusDevice], None],
        not_built: Callable[[int, str], None],
    ) -> None:
        self._loop = loop
        self._store = store
        self._gone = gone
        self._not_built = not_built
        self.devid = devid
        self.log = logging.getLogger(f"virtio-dm domain {frontend} device {devid}")
        self.phase = Phase.BUILDING
        self._nodes = BackendNodes(store, backend, frontend, devid)
        frontend_state = f"{self._nodes.frontend_directory}/state"
        self._driver_wait = DriverWait(loop, self.log, frontend_state, lambda: self.handle(self.step))
        self._queues = 0
        self._after: Callable[[], None] = self._to_wait  # once disconnected, or finished
        self._fresh = False  # whether the frontend's Initialised, should we see it, is meant for the next connection
        self._frontend_connected = False
        self._patience: Timer | None = None
        self._error_timer: Timer | None = None
        self._seen_error = (0, 0)
        self._updating = False  # an update is with the thread
        self._remove_at_end = False
        self._built: Built | None = None
        self._retry: Timer | None = None
        self._attempts = 0  # to write what is left at the end
        self.orphaned = False
        """The frontend's directory is gone: in a driver domain the only sign that its domain is."""
        # A frontend that is Initialised waits for us, unless an emulator before us was connected to what it offers.
        self._found_fresh = self._nodes.state() <= State.INIT_WAIT
        self._spec = self._nodes.read("spec") or ""
        self._nodes.write_state(State.INITIALISING)
        self._thread = DeviceThread(hypervisor, frontend, polling, self.log, PostedListener(loop, self))
        self._thread.build(self._spec)

    @property
    def stuck(self) -> bool:
        """Whether its thread still runs."""
        return self._thread.alive

    def handle(self, callback: Callable[[], None]) -> None:
        """Runs `callback`; what goes wrong in it stays with this device, unless the store is gone (StoreError)."""
        try:
            callback()
        except StoreError as error:
            if error.errno in STORE_GONE:
                raise
            self.log.error("the store refused: %s", error)
            if self._retry is None:  # one at a time, however often a guest makes us write
                self._retry = self._loop.call_later(RETRY_SECONDS, self._try_again)
        except Exception:
            self.log.exception("failed in phase %s", self.phase.name)

    def _try_again(self) -> None:
        self._retry = None
        self.handle(self._catch_up)

    def _catch_up(self) -> None:
        """The store hears the state that an earlier call did not come to write, and what it refused to take."""
        state = STATES.get(self.phase)
        if state is not None and self._nodes.state() is not state:
            self._nodes.write_state(state)
        if self.phase is Phase.BUILDING and self._built:
            self.built(self._built)
        self._show_error()
        self.step()
        self._nodes.settle()

    # ---- What the store says ------------------------------------------------------------------------------------

    def frontend_changed(self) -> None:
        """The frontend's state node was written."""
        self._fresh = True

    def step(self) -> None:
        """Brings the device to where the store wants it."""
        state = None
        try:
            state = self._step()
        finally:
            self._driver_wait.follow(state if self.phase is Phase.WAITING else None)

    def _step(self) -> State | None:
        """The frontend's state, if anybody asked for it."""
        if self.phase in (Phase.FINISHING, Phase.GONE):
            return None
        if not self._nodes.exists():
            self._end()  # the domain's end: the toolstack removed the directory
            return None
        if not self._nodes.frontend_exists():
            self.orphaned = True
            self.forget()
            return None
        if self._nodes.read("online") == "0" and self.phase is not Phase.CLOSING:
            self.unplug()
        self._rebuild_or_update()
        handler = self._ON_FRONTEND.get(self.phase)
        if handler is None:
            return None
        try:
            state = read_state(self._store, self._nodes.frontend_directory)
        except NodeError as error:
            if self.phase is not Phase.CLOSED:
                self._refuse(f"store {error}")
            return None
        handler(self, state)
        return state

    def _rebuild_or_update(self) -> None:
        if self._updating or self.phase in (Phase.BUILDING, Phase.FINISHING):
            return
        # One whose end the store refused to hear is not done again.
        update = None if self._nodes.owes("update") else self._nodes.read("update")
        if self.phase is Phase.FAILED:
            spec = self._nodes.read("spec") or ""
            self._updating = update == ""  # "look anew at what you stand on"
            if self._updating or spec != self._spec:
                self._spec = spec
                self.phase = Phase.BUILDING
                self._thread.build(spec)
                return
        if update is not None:
            self._updating = True
            self._thread.update(update)

    def _waiting(self, state: State) -> None:
        if state is State.INITIALISED and self._fresh:
            try:
                channel = read_channel(self._store, self._nodes.frontend_directory, self._queues)
            except NodeError as error:
                self._refuse(f"store {error}")
                return
            self.phase = Phase.CONNECTING
            self._thread.serve(channel)
        elif state is State.CLOSING:
            self._to_closed()

    def _connected(self, state: State) -> None:
        if state is State.CONNECTED:
            self._frontend_connected = True
        elif state is State.CLOSING:
            self._to_closing()
        elif state is State.CLOSED:
            self._disconnect(self._to_closed)
        elif state is not State.INITIALISED or self._frontend_connected:
            self._disconnect(self._to_wait)  # another kernel, or none

    def _closing(self, state: State) -> None:
        if state in (State.CLOSED, State.UNKNOWN, State.INITIALISING):
            self._followed()

    def _closed(self, state: State) -> None:
        if state in (State.INITIALISING, State.UNKNOWN):
            self._to_wait()

    _ON_FRONTEND: ClassVar[dict[Phase, Callable[[XenbusDevice, State], None]]] = {
        Phase.WAITING: _waiting,
        Phase.CONNECTED: _connected,
        Phase.CLOSING: _closing,
        Phase.CLOSED: _closed,
    }

    # ---- Ways through the states --------------------------------------------------------------------------------

    def unplug(self) -> None:
        """Takes the device away for good, the frontend being given time to follow."""
        self._remove_at_end = True
        if self.phase is Phase.CONNECTED:
            self._to_closing()
        elif self.phase not in (Phase.CLOSING, Phase.FINISHING, Phase.GONE):
            self._end(self._leave_nothing)

    def suspend(self) -> None:
        """Leaves the device in the store for the next emulator; an unplug that is on its way goes on."""
        unplugging = self.phase is Phase.CLOSING and self._remove_at_end
        if not unplugging and self.phase not in (Phase.FINISHING, Phase.GONE):
            self._end(lambda: self._nodes.write_state(State.INITIALISING))

    def forget(self) -> None:
        """The domain is gone: nobody is waited for, and nothing of the device is left."""
        self._remove_at_end = True
        if self.phase not in (Phase.FINISHING, Phase.GONE):
            self._end(self._leave_nothing)

    def abandon(self) -> None:
        """The process ends although the thread does not: keeps the store's promises."""
        if self._remove_at_end:
            self._leave_nothing()

    def _to_wait(self, fresh: bool = False) -> None:
        self._fresh = fresh  # else the frontend has to see this state first
        self.phase = Phase.WAITING
        self._nodes.write_error(None, state=State.INIT_WAIT)

    def _to_closing(self) -> None:
        self.phase = Phase.CLOSING
        # Before the store is spoken to: it may be gone, and the device must end all the same.
        self._patience = self._loop.call_later(PATIENCE_SECONDS, lambda: self.handle(self._not_followed))
        self._nodes.write_state(State.CLOSING)

    def _not_followed(self) -> None:
        if self.phase is Phase.CLOSING:
            what = "the guest did not let go of the device in %g s; it is taken away: see `dmesg` in the domain"
            self.log.warning(what, PATIENCE_SECONDS)
            self._followed()

    def _followed(self) -> None:
        if self._remove_at_end:
            self._end(self._leave_nothing)
        else:
            self._disconnect(self._to_closed)

    def _to_closed(self) -> None:
        self.phase = Phase.CLOSED
        self._nodes.write_state(State.CLOSED)

    def _refuse(self, reason: str) -> None:
        """The frontend's nodes or its channel are broken: 5, 6, and wait for it to start afresh."""
        self.log.warning("closed: %s", explain(reason, self._nodes.frontend_directory))
        connected = self.phase in (Phase.CONNECTED, Phase.CLOSING)
        if not connected:
            self.phase = Phase.CLOSED  # also if the store refuses to hear why
        self._nodes.write_error(reason, state=State.CLOSING)
        if connected:
            self._disconnect(self._to_closed)
        else:
            self._to_closed()

    def _disconnect(self, after: Callable[[], None]) -> None:
        self.phase = Phase.DISCONNECTING
        self._after = after
        self._thread.disconnect()

    def _end(self, after: Callable[[], None] = lambda: None) -> None:
        """Closes the model, then does `after`."""
        self.phase = Phase.FINISHING
        self._after = after
        self._thread.finish()

    def _leave_nothing(self) -> None:
        self._nodes.write_state(State.CLOSED)
        self._nodes.remove()

    # ---- What the thread says -----------------------------------------------------------------------------------

    def built(self, built: Built) -> None:
        if self.phase is Phase.BUILDING:
            self.log.info("ready: %s", built.name)
            self._queues = built.max_queues
            self._built = built
            self._nodes.write_description(built)
            if self._updating:
                self._nodes.finish_update(None, None)
                self._updating = False
            self._built = None
            self._to_wait(self._found_fresh)
            self.step()

    def not_built(self, reason: str) -> None:
        if self.phase is Phase.BUILDING:
            self.log.error("cannot be made: %s", reason)
            self.phase = Phase.FAILED
            updating, self._updating = self._updating, False
            self._not_built(self.devid, reason)
            self._nodes.write_error(f"spec {reason}", private=True, state=State.CLOSED)
            if updating:
                self._nodes.finish_update(reason, None)
            self.step()

    def connected(self) -> None:
        if self.phase is Phase.CONNECTING:
            self.log.info("connected")
            self.phase = Phase.CONNECTED
            self._driver_wait.connected()
            self._frontend_connected = False
            self._seen_error = (0, 0)
            self._nodes.write_state(State.CONNECTED)
            self._show_error()
            self.step()

    def not_connected(self, reason: str) -> None:
        if self.phase is Phase.CONNECTING:
            self._refuse(reason)
            self.step()
        else:
            self.disconnected("stopped", "")

    def disconnected(self, reason: str, error: str) -> None:
        if self._patience:
            self._patience.cancel()
        if self.phase in (Phase.FINISHING, Phase.GONE):
            return
        if self.phase is not Phase.DISCONNECTING:  # nobody asked for it
            self._after = self._to_closed if self.phase is Phase.CLOSING else self._to_wait
        if self._remove_at_end:
            self._end(self._leave_nothing)
        elif error:
            self.phase = Phase.DISCONNECTING
            self._refuse(error)
        else:
            self.log.info("disconnected: %s", reason)
            self._after()
        self.step()

    def updated(self, error: str | None, spec: str | None) -> None:
        if error:
            self.log.warning("update refused: %s", error)
        else:
            self.log.info("updated")
        self._updating = False
        self._nodes.finish_update(error, spec)
        self._seen_error = (0, 0)  # the node said something else now; the next look says it again
        self.step()

    def finished(self) -> None:
        self.phase = Phase.GONE
        self._attempts += 1
        again = False
        try:
            # Meanwhile the toolstack may have removed the device, and attached another one under its number.
            if self._attempts == 1 or self._nodes.state() is not State.INITIALISING:
                self._after()
        except StoreError as error:
            again = error.errno not in STORE_GONE and self._attempts < LAST_ATTEMPTS
            if not again:
                raise
            self.log.error("the store refused: %s", error)
            self._loop.call_later(RETRY_SECONDS, lambda: self.handle(self.finished))
        finally:
            if not again:
                self.log.info("ended")
                self._gone(self)

    def _show_error(self) -> None:
        """Tells the store, now and then, why the device needs a reset."""
        if self._error_timer:
            self._error_timer.cancel()
        if self.phase is not Phase.CONNECTED:
            return
        from cpp_ring import error_name

        status, code, detail = self._thread.status()
        error = (code, detail) if status & NEEDS_RESET else (0, 0)
        self._error_timer = self._loop.call_later(ERROR_NODE_SECONDS, lambda: self.handle(self._show_error))
        if error != self._seen_error:
            text = f"{error_name(code)} {detail}" if status & NEEDS_RESET else None
            if text:
                self.log.warning("needs a reset: %s", explain(text, self._nodes.frontend_directory))
            self._nodes.write_error(text)
            self._seen_error = error
