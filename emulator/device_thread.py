"""The thread of one device: all that its model does happens here, so that a slow model delays only itself."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from devices import options
from devices.device import Device
from devices.errors import DeviceError, OptionError
from emulator import models, spec
from emulator.backend_nodes import Built
from emulator.dispatch import Dispatch, Services
from emulator.frontend_nodes import Channel
from emulator.poll import Polling

if TYPE_CHECKING:
    from cpp_ring import Backend, Hypervisor

VENDOR_ID = 0x5853  # Xen's, as of its platform PCI device


class Listener(Protocol):
    """Who is told what became of the thread's work; called in the device's thread."""

    def built(self, built: Built) -> None: ...
    def not_built(self, reason: str) -> None: ...
    def connected(self) -> None: ...
    def not_connected(self, reason: str) -> None: ...
    def disconnected(self, reason: str, error: str) -> None:
        """`reason` as of Backend.run; `error`: "name detail" when the channel broke, else empty."""

    def updated(self, error: str | None, spec: str | None) -> None:
        """`error`: why not; `spec`: the specification with the options that changed."""

    def finished(self) -> None: ...


class DeviceThread:
    """Builds, serves, updates and closes one device, in order. Methods are for one other thread and never wait."""

    def __init__(
        self, hypervisor: Hypervisor, frontend: int, polling: Polling, log: logging.Logger, listener: Listener
    ) -> None:
        self._hypervisor = hypervisor
        self._frontend = frontend
        self._polling = polling
        self._log = log
        self._listener = listener
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._device: Device | None = None
        self._dispatch: Dispatch | None = None
        self._engine: Backend | None = None
        self._spec: spec.Spec | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name=log.name, daemon=True)
        self._thread.start()

    # ---- From the other thread ----------------------------------------------------------------------------------

    def build(self, text: str) -> None:
        """Makes and opens the device of a specification; `built` or `not_built` follows."""
        self._jobs.put(lambda: self._build(text))

    def serve(self, channel: Channel) -> None:
        """Connects and serves; `not_connected`, or `connected` and in the end `disconnected` follow."""
        self._stopping = False
        self._jobs.put(lambda: self._serve(channel))

    def disconnect(self) -> None:
        """Ends `serve` once the model's call in progress has returned."""
        self._stopping = True
        if engine := self._engine:
            engine.stop()

    def update(self, text: str) -> None:
        """Changes options of the live device; `updated` follows."""
        self.post(lambda: self._update(text))

    def finish(self) -> None:
        """Ends everything: the device is closed, `finished` follows."""
        self.disconnect()
        self._jobs.put(None)

    def post(self, job: Callable[[], None]) -> None:
        """Runs `job` in the device's thread, also while it serves. From any thread."""
        self._jobs.put(job)
        if engine := self._engine:
            engine.post(self._run_one)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def status(self) -> tuple[int, int, int]:
        """The virtio device status, the last error code and its detail."""
        engine = self._engine
        return (engine.device_status, engine.error_code, engine.error_detail) if engine else (0, 0, 0)

    # ---- In the device's thread ---------------------------------------------------------------------------------

    def _main(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except BaseException as error:
                self._failed("post", error)
        self._close()
        self._listener.finished()

    def _run_one(self) -> None:
        """One posted job, under the engine; whoever came first may have run it already."""
        with contextlib.suppress(queue.Empty):
            job = self._jobs.get_nowait()
            if job is None:
                self._jobs.put(None)  # the end comes after the engine's
            else:
                job()

    def _failed(self, where: str, error: BaseException) -> None:
        if self._dispatch:
            self._dispatch.failed(where, error)
        else:
            with contextlib.suppress(BaseException):  # the text of the error may fail as well
                self._log.error("failed in %s: %s", where, type(error).__name__, exc_info=error)

    def _build(self, text: str) -> None:
        try:
            self._spec = spec.parse(text)
            device = models.build(self._spec)
            self._open(device)
        except (spec.SpecError, OptionError, DeviceError) as error:
            self._close()
            self._listener.not_built(str(error))
        except BaseException as error:
            self._failed("open", error)
            self._close()
            self._listener.not_built(f"the model failed: {type(error).__name__}")
        else:
            self._listener.built(Built(device.name, device.device_id, len(device.queues)))

    def _open(self, device: Device) -> None:
        from cpp_ring import TRANSPORT_FEATURES, Backend

        self._dispatch = Dispatch(device, self._log)
        engine = Backend(
            self._hypervisor,
            self._frontend,
            self._dispatch,
            device_id=device.device_id,
            vendor_id=VENDOR_ID,
            features=device.features | TRANSPORT_FEATURES,
            config=device.config.memory,
            hooked_reads=device.hooked_reads(),
            writable=device.writable_mask(),
            hooked_writes=device.hooked_writes(),
            queue_sizes=[entry.size for entry in device.queues],
            pulled=[device.handler(entry) is None for entry in device.queues],
            spin_us=self._polling.least,
            most_spin_us=self._polling.most,
        )
        self._dispatch.attach(Services(engine, self.post))
        self._device, self._engine = device, engine
        device.open()

    def _serve(self, channel: Channel) -> None:
        from cpp_ring import ChannelError, HostError, error_name

        engine = self._engine
        if engine is None:
            raise RuntimeError("there is no device to serve")
        try:
            engine.connect(
                channel.fe_to_be_ref,
                channel.be_to_fe_ref,
                channel.event_channel,
                channel.queue_event_channels,
                channel.arena,
            )
        except ChannelError as error:
            self._listener.not_connected(f"{error.name} {error.detail}")
            return
        except HostError as error:
            self._listener.not_connected(f"host {error.errno} {error.strerror or error}")
            return
        except BaseException as error:  # out of memory, for one; whoever waits gets to know all the same
            self._failed("connect", error)
            self._listener.not_connected(f"host: {type(error).__name__}")
            return
        self._listener.connected()
        if self._stopping:
            engine.stop()  # connect() has forgotten an earlier one
        broken = ""
        try:
            reason = engine.run()
        except BaseException as error:
            self._failed("run", error)
            reason, broken = "failed", f"host: {type(error).__name__}"
        if reason == "broken":
            broken = f"{error_name(engine.error_code)} {engine.error_detail}"
        self._call("reset")
        self._listener.disconnected(reason, broken)

    def _update(self, text: str) -> None:
        error = changed = None
        try:
            if self._device is None or self._spec is None:
                raise OptionError("there is no device to update")
            pairs = dict(spec.parse_options(text))
            options.update(self._device, pairs)
            # What can be said at the start as well holds for the next emulator too.
            known = options.describe(type(self._device))
            if pairs:
                self._spec = self._spec.replace({key: value for key, value in pairs.items() if key in known})
            else:  # the device looked anew at what it stands on, and so shall the next one
                self._spec = self._spec.without(options.describe_update(type(self._device)))
            changed = str(self._spec)
        except (spec.SpecError, OptionError, DeviceError) as refusal:
            error = str(refusal)
        except BaseException as failure:
            self._failed("update", failure)
            error = f"the model failed: {type(failure).__name__}"
        self._listener.updated(error, changed)

    def _close(self) -> None:
        if self._device is not None:
            self._call("reset")
            self._call("close")
        if self._dispatch is not None:
            self._dispatch.detach()
        self._device = self._dispatch = self._engine = None

    def _call(self, method: str) -> None:
        try:
            getattr(self._device, method)()
        except BaseException as error:
            self._failed(method, error)
