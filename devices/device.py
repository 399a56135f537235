"""The base class of device models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar, TypeVar

from devices.backend import BackendServices
from devices.config_space import ConfigSpace, Field
from devices.features import RESERVED_MASK, FeatureTable, has
from devices.queue import Queue
from devices.request import Hold, Request

Handler = Callable[[Request], Hold | None]
_Method = TypeVar("_Method", bound=Callable[..., Any])


def on_read(field: str) -> Callable[[_Method], _Method]:
    """Marks the method that computes a configuration field: `method(self) -> value`, called before the driver reads."""

    def mark(method: _Method) -> _Method:
        method.__dict__["on_read"] = field
        return method

    return mark


def on_write(field: str) -> Callable[[_Method], _Method]:
    """Marks the method called when the driver writes a configuration field: `method(self, value)`, before the store.

    Raising ValueError refuses the write: no field it covers changes. A driver that writes a part of the field only
    is answered with the field's other bytes as they are.
    """

    def mark(method: _Method) -> _Method:
        method.__dict__["on_write"] = field
        return method

    return mark


class Device:
    """A virtio device, told from others by what a subclass declares:

    name          what `--device` calls it, e.g. "blk"
    device_id     virtio device type (virtio 1.3 section 5)
    queues        its virtqueues, in the order of their indexes
    config_space  the class of its configuration space
    features      the device-type feature bits it offers, an int of any width
    offers        those it may offer with one or other of its options, where that is more than `features`
    feature_table their names and dependencies

    Options are the keyword arguments of `__init__`, converted by their annotations (`devices.options`). `__init__`
    checks them and opens nothing. It may give `Device.__init__` features and queues that depend on them:

        class Counter(Device):
            name, device_id = "counter", 0x42
            queues = [Queue("requestq")]
            config_space = CounterConfig
            config: CounterConfig

            def __init__(self, *, start: int = 0) -> None:
                super().__init__()
                self.config.value = start

            def requestq(self, request: Request) -> None:
                self.config.value += 1
                request.write(self.config.value.to_bytes(8, "little"))

    One method a queue serves it (see `Queue`). Handlers return None once the request is done, or `request.hold()`.
    `RequestError` from a handler says that the driver made a request no driver would make; any other exception, that
    the model failed. Either way this device needs a reset, and nothing else is touched.

    Every method is called in the one thread of the device, `check` and `__init__` excepted. Between `activate` and
    `reset` there are queues and guest memory; outside there are none.
    """

    name: ClassVar[str] = ""
    device_id: ClassVar[int] = 0
    config_space: ClassVar[type[ConfigSpace]] = ConfigSpace
    feature_table: ClassVar[FeatureTable] = FeatureTable()
    offers: ClassVar[int] = 0

    queues: Sequence[Queue] = ()
    features: int = 0
    config: ConfigSpace
    backend: BackendServices

    _read_hooks: ClassVar[dict[str, str]] = {}
    _write_hooks: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # By name: a subclass that overrides a hook's method overrides the hook.
        methods = [entry for base in reversed(cls.__mro__) for entry in vars(base).items()]
        cls._read_hooks = {method.on_read: name for name, method in methods if hasattr(method, "on_read")}
        cls._write_hooks = {method.on_write: name for name, method in methods if hasattr(method, "on_write")}
        fields = {field.name: field for field in cls.config_space.fields}
        for name in (*cls._read_hooks, *cls._write_hooks):
            if name not in fields:
                raise TypeError(f"{cls.__name__}: hook on {name!r}, which is no field of {cls.config_space.__name__}")
        for name in cls._write_hooks:
            if not fields[name].writable:
                raise TypeError(f"{cls.__name__}: on_write({name!r}), but the driver cannot write that field")

    def __init__(self, *, features: int | None = None, queues: Sequence[Queue] | None = None) -> None:
        """Raises ValueError for features that belong to the transport, lack one they require or are not in `offers`."""
        if features is not None:
            self.features = features
        if queues is not None:
            self.queues = tuple(queues)
        if self.features & RESERVED_MASK:
            raise ValueError(f"{self.name}: feature bits 24 to 49 are the transport's, {self.features:#x} offered")
        if self.offers and (more := self.features & ~self.offers):
            raise ValueError(f"{self.name}: offers features {more:#x}, which its class does not list")
        if unmet := self.feature_table.unmet(self.features):
            raise ValueError(f"{self.name}: {unmet}")
        self.config = self.config_space(self.features)

    # ---- What the engine asks -----------------------------------------------------------------------------------

    def accepts(self, features: int) -> bool:
        """Whether the driver may choose these features (FEATURES_OK): offered, and their dependencies met.

        Bits of the transport (24 to 49) are not looked at.
        """
        wanted = features & ~RESERVED_MASK
        return wanted & ~self.features == 0 and self.feature_table.unmet(wanted) is None

    def queues_for(self, features: int) -> Sequence[Queue | None]:
        """The virtqueues by index once `features` are negotiated; None where there is no queue of that index."""
        return tuple(q if q.feature is None or has(features, q.feature) else None for q in self.queues)

    def handler(self, queue: Queue) -> Handler | None:
        """The bound method that serves the queue; None for a pulled queue."""
        method: Handler | None = getattr(self, queue.handler, None)
        return method

    def ready_handler(self, queue: Queue) -> Callable[[int], None] | None:
        """The bound method to call, with the queue's index, when a pulled queue got buffers."""
        method: Callable[[int], None] | None = getattr(self, f"{queue.handler}_ready", None)
        return method

    # ---- Life cycle, for models to override ---------------------------------------------------------------------

    def check(self) -> None:
        """Looks, without keeping anything open, whether `open` can succeed. Raises DeviceError. From any thread."""

    def open(self) -> None:
        """Opens what the device needs on the host; called once, before a driver is there. Raises DeviceError."""

    def features_ok(self, features: int) -> None:
        """The driver's features are settled (FEATURES_OK). For configuration fields that depend on them."""

    def activate(self, features: int, queues: Sequence[int]) -> None:
        """The driver is ready (DRIVER_OK) with these features and the virtqueues of these indexes."""

    def reset(self) -> None:
        """The driver, or its death, reset the device: forget held requests, and every choice the driver made.

        Comes also when the device was never activated, and more than once.
        """

    def queue_reset(self, queue: int) -> None:
        """The driver reset this virtqueue alone (VIRTIO_F_RING_RESET): forget the requests that are held of it."""

    def close(self) -> None:
        """The device goes away: close what `open` opened. Comes after a last `reset`, or after a failed `open`."""

    def update(self, *args: Any, **options: Any) -> None:
        """Changes options of a live device: an override names them as annotated keywords. Raises DeviceError."""

    # ---- Configuration space, for the engine --------------------------------------------------------------------

    def writable_mask(self) -> bytes:
        """One byte for each of `config.memory`, 1 where the driver may write."""
        return self._mask(lambda field: field.writable)

    def hooked_reads(self) -> bytes:
        """One byte for each of `config.memory`, 1 where `config_refresh` must come before a read."""
        return self._mask(lambda field: field.name in self._read_hooks)

    def hooked_writes(self) -> bytes:
        """One byte for each of `config.memory`, 1 where a write must go through `config_write`."""
        return self._mask(lambda field: field.name in self._write_hooks)

    def config_refresh(self, offset: int, size: int) -> None:
        """Computes the hooked fields among the `size` bytes at `offset`."""
        if exact := self._whole_reads.get((offset, size)):
            self.config.memory[offset : offset + size] = exact().to_bytes(size, "little")
            return
        for field in self._overlapping(offset, size):
            if hook := self._read_hooks.get(field.name):
                setattr(self.config, field.name, getattr(self, hook)())

    def config_write(self, offset: int, data: bytes) -> bool:
        """The driver writes `data` at `offset`: all of it, or nothing and False.

        False: out of range, not writable (`writable_mask`), or refused by a hook. Hooks get ints, or bytes for arrays.
        """
        size = len(data)
        if exact := self._whole_writes.get((offset, size)):
            try:
                exact(int.from_bytes(data, "little"))
            except ValueError:
                return False
            self.config.memory[offset : offset + size] = data
            return True
        if not (0 <= offset <= self.config.size and size <= self.config.size - offset):
            return False
        if 0 in self.writable_mask()[offset : offset + size]:
            return False
        merged = bytearray(self.config.memory)
        merged[offset : offset + size] = data
        for field in self._overlapping(offset, size):
            if hook := self._write_hooks.get(field.name):
                raw = bytes(merged[field.offset : field.end])
                try:
                    getattr(self, hook)(raw if field.count > 1 else int.from_bytes(raw, "little"))
                except ValueError:
                    return False
        self.config.memory[offset : offset + size] = data
        return True

    # Drivers read and write whole fields: those accesses, by offset and size, go to their hook without a search. Made
    # at the first access, when the features are settled.

    @cached_property
    def _whole_reads(self) -> dict[tuple[int, int], Callable[[], int]]:
        return {(f.offset, f.size): getattr(self, hook) for f, hook in self._hooked_integers(self._read_hooks)}

    @cached_property
    def _whole_writes(self) -> dict[tuple[int, int], Callable[[int], None]]:
        return {(f.offset, f.size): getattr(self, hook) for f, hook in self._hooked_integers(self._write_hooks)}

    def _hooked_integers(self, hooks: dict[str, str]) -> list[tuple[Field, str]]:
        fields = self.config.fields
        return [(f, hooks[f.name]) for f in fields if f.name in hooks and f.count == 1 and f.exists(self.features)]

    def _overlapping(self, offset: int, size: int) -> list[Field]:
        features = self.features
        end = offset + size
        return [f for f in self.config.fields if f.offset < end and offset < f.end and f.exists(features)]

    def _mask(self, chosen: Callable[[Field], bool]) -> bytes:
        result = bytearray(self.config.size)
        for field in self.config.fields:
            if field.exists(self.features) and chosen(field):
                result[field.offset : field.end] = b"\x01" * field.size
        return bytes(result)
