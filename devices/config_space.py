"""A device's configuration space, declared field by field (virtio 1.3 section 2.5).

    class BalloonConfig(ConfigSpace):
        num_pages = le32(0)
        actual = le32(4, writable=True)
        poison_val = le32(12, feature=F_PAGE_POISON)

Offsets are explicit, as the specification's layouts are; a declaration whose fields overlap is refused.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, overload

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Field:
    """One declared field: offset and size in bytes, `count` items of `kind`.

    The field exists when one of the feature bits in `feature` is offered, or always if `feature` is empty.
    """

    name: str
    offset: int
    size: int
    kind: str
    count: int
    feature: tuple[int, ...]
    writable: bool

    @property
    def end(self) -> int:
        return self.offset + self.size

    def exists(self, features: int) -> bool:
        """Whether a device that offers `features` has the field."""
        return not self.feature or any(features >> bit & 1 for bit in self.feature)


class _Declaration:
    """What integer and array fields share: their place, and the `Field` made from it."""

    kind: ClassVar[str]
    item: ClassVar[struct.Struct]

    def __init__(
        self, offset: int, *, feature: int | tuple[int, ...] | None = None, writable: bool = False, count: int = 1
    ) -> None:
        self.offset = offset
        self.count = count
        self.feature = () if feature is None else feature if isinstance(feature, tuple) else (feature,)
        self.writable = writable
        self.size = self.item.size * count

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        self.field = Field(name, self.offset, self.size, self.kind, self.count, self.feature, self.writable)


class _Integer(_Declaration):
    def __init__(self, offset: int, *, feature: int | tuple[int, ...] | None = None, writable: bool = False) -> None:
        super().__init__(offset, feature=feature, writable=writable)
        self._unpack = self.item.unpack_from  # models read fields for every request

    @overload
    def __get__(self, config: None, owner: type) -> Self: ...
    @overload
    def __get__(self, config: ConfigSpace, owner: type) -> int: ...
    def __get__(self, config: ConfigSpace | None, owner: type) -> Self | int:
        if config is None:
            return self
        value: int = self._unpack(config.whole, self.offset)[0]
        return value

    def __set__(self, config: ConfigSpace, value: int) -> None:
        config.require(self.field)
        try:
            self.item.pack_into(config.whole, self.offset, value)
        except struct.error:
            raise ValueError(f"config field {self.name}: {value!r} does not fit {self.kind}") from None


class u8(_Integer):  # noqa: N801 - the specification's name
    """An unsigned byte; its attribute is an int."""

    kind = "u8"
    item = struct.Struct("<B")


class le16(_Integer):  # noqa: N801 - the specification's name
    """An unsigned little-endian 16-bit field; its attribute is an int."""

    kind = "le16"
    item = struct.Struct("<H")


class le32(_Integer):  # noqa: N801 - the specification's name
    """An unsigned little-endian 32-bit field; its attribute is an int."""

    kind = "le32"
    item = struct.Struct("<I")


class le64(_Integer):  # noqa: N801 - the specification's name
    """An unsigned little-endian 64-bit field; its attribute is an int."""

    kind = "le64"
    item = struct.Struct("<Q")


class array(_Declaration):  # noqa: N801 - a kind, like the integers
    """`count` items, 2 or more, of one integer kind; its attribute is bytes, in wire format."""

    def __init__(
        self,
        kind: type[_Integer],
        count: int,
        offset: int,
        *,
        feature: int | tuple[int, ...] | None = None,
        writable: bool = False,
    ) -> None:
        if count < 2:
            raise TypeError(f"array of {count} {kind.kind}: declare a single item as {kind.kind}(offset)")
        self.kind = kind.kind  # type: ignore[misc]  # a class fact of the integers, a fact of each array
        self.item = kind.item  # type: ignore[misc]
        super().__init__(offset, feature=feature, writable=writable, count=count)

    @overload
    def __get__(self, config: None, owner: type) -> Self: ...
    @overload
    def __get__(self, config: ConfigSpace, owner: type) -> bytes: ...
    def __get__(self, config: ConfigSpace | None, owner: type) -> Self | bytes:
        if config is None:
            return self
        return bytes(config.whole[self.offset : self.offset + self.size])

    def __set__(self, config: ConfigSpace, value: bytes) -> None:
        config.require(self.field)
        if len(value) != self.size:
            raise ValueError(f"config field {self.name}: {len(value)} bytes given, it has {self.size}")
        config.whole[self.offset : self.offset + self.size] = value


class ConfigSpace:
    """The configuration space of one device; subclasses declare its fields.

    On the class, `fields` are all declared fields by offset and `size` is the size of the whole layout. An instance
    is made for the features its device offers: a field none of whose features is offered reads 0 and cannot be set,
    and the instance's `size` ends after the last field that exists (so an instance without optional fields is as
    short as the specification allows).

    Fields are attributes (ints; arrays are bytes). All of them live in one block of memory, in wire format:

    memory  memoryview of shape (size,), what the driver sees; the engine answers plain reads from it
    bytes   the same as a numpy array of uint8, shape (size,)
    array   the whole layout as a numpy structured array of shape (), one numpy field for each field

    Values are set by the thread of the device only; the driver sees them at its next read.
    """

    fields: ClassVar[tuple[Field, ...]] = ()
    size: int = 0

    def __init_subclass__(cls, *, size: int | None = None, **kwargs: Any) -> None:
        """`size` (bytes) is for layouts that end in padding; by default the layout ends with its last field."""
        super().__init_subclass__(**kwargs)
        entries = [entry for base in cls.__mro__ for entry in vars(base).values()]
        declared = [entry.field for entry in entries if isinstance(entry, _Declaration)]
        cls.fields = tuple(sorted(declared, key=lambda field: field.offset))
        end = 0
        for field in cls.fields:
            if field.offset < end:
                raise TypeError(f"{cls.__name__}.{field.name}: offset {field.offset} is inside the field before it")
            end = field.end
        cls.size = end if size is None else size
        if end > cls.size:
            raise TypeError(f"{cls.__name__}: fields end at {end}, past its size {cls.size}")

    def __init__(self, features: int) -> None:
        self.features = features
        self.whole = memoryview(bytearray(type(self).size))
        exposed = [field.end for field in self.fields if field.exists(features)]
        if len(exposed) < len(self.fields):
            self.size = max(exposed, default=0)
        self.memory = self.whole[: self.size]

    def require(self, field: Field) -> None:
        """Raises ValueError unless the device has `field`."""
        if not field.exists(self.features):
            raise ValueError(f"config field {field.name} needs feature bit {field.feature}, which is not offered")

    @property
    def bytes(self) -> npt.NDArray[np.uint8]:
        """What the driver sees, shape (size,), shared with `memory`."""
        import numpy as np

        return np.frombuffer(self.memory, dtype=np.uint8)

    @property
    def array(self) -> npt.NDArray[np.void]:
        """The whole layout as one structured array of shape (), shared with `memory`."""
        import numpy as np

        shapes = [(field.count,) if field.count > 1 else () for field in self.fields]
        dtype = np.dtype(
            {
                "names": [field.name for field in self.fields],
                "formats": [
                    np.dtype((f"<u{field.size // field.count}", shape))
                    for field, shape in zip(self.fields, shapes, strict=True)
                ],
                "offsets": [field.offset for field in self.fields],
                "itemsize": type(self).size,
            }
        )
        return np.ndarray((), dtype=dtype, buffer=self.whole)
