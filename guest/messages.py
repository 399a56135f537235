"""virtio-msg revision 1: the payloads of docs/protocol.md section 2, packed and unpacked.

The engine makes and checks the 8-byte header; here are the payloads only. An unpack function raises `BadAnswer` for a
payload that is not what its request asked for: the backend is not trusted.
"""

import struct
from dataclasses import dataclass
from typing import Final

from guest.errors import BadAnswer

GET_DEVICE_INFO: Final = 0x02
GET_DEVICE_FEATURES: Final = 0x03
SET_DRIVER_FEATURES: Final = 0x04
GET_CONFIG: Final = 0x05
SET_CONFIG: Final = 0x06
GET_DEVICE_STATUS: Final = 0x07
SET_DEVICE_STATUS: Final = 0x08
GET_VQUEUE: Final = 0x09
SET_VQUEUE: Final = 0x0A
RESET_VQUEUE: Final = 0x0B
GET_SHM: Final = 0x0C

READS: Final = frozenset({GET_DEVICE_INFO, GET_DEVICE_FEATURES, GET_CONFIG, GET_DEVICE_STATUS, GET_VQUEUE, GET_SHM})
"""Messages that change nothing; but a model may have a hook on what GET_CONFIG reads."""

MAX_CONFIG_DATA: Final = 256
"""Bytes of config space one GET_CONFIG or SET_CONFIG carries at most."""
MAX_FEATURE_BLOCKS: Final = 64
"""Blocks of 32 feature bits one message carries at most."""

_DEVICE_INFO = struct.Struct("<5I2H")
_RANGE = struct.Struct("<2I")
_CONFIG = struct.Struct("<3I")
_WORD = struct.Struct("<I")
_VQUEUE = struct.Struct("<4I3Q")


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """Answer of GET_DEVICE_INFO."""

    device_id: int
    vendor_id: int
    feature_bits: int
    config_size: int
    max_vqueues: int


@dataclass(frozen=True, slots=True)
class ConfigData:
    """A piece of config space and the generation it belongs to."""

    generation: int
    data: bytes


@dataclass(frozen=True, slots=True)
class QueueInfo:
    """Answer of GET_VQUEUE; `max_size` 0: no such queue. Addresses are grant-DMA addresses."""

    index: int
    max_size: int
    size: int
    descriptor: int
    driver: int
    device: int


def _fixed(layout: struct.Struct, payload: bytes, message: str) -> tuple[int, ...]:
    if len(payload) != layout.size:
        raise BadAnswer(f"{message}: {len(payload)} bytes of answer, expected {layout.size}")
    return layout.unpack(payload)


def _echoed(message: str, what: str, got: int, asked: int) -> None:
    if got != asked:
        raise BadAnswer(f"{message}: answer for {what} {got}, asked for {asked}")


def empty(payload: bytes, message: str) -> None:
    """Checks the answer of SET_DRIVER_FEATURES, SET_VQUEUE and RESET_VQUEUE."""
    if payload:
        raise BadAnswer(f"{message}: {len(payload)} bytes of answer, expected none")


def device_info(payload: bytes) -> DeviceInfo:
    device_id, vendor_id, feature_bits, config_size, max_vqueues, _, _ = _fixed(
        _DEVICE_INFO, payload, "GET_DEVICE_INFO"
    )
    if feature_bits % 32:
        raise BadAnswer(f"GET_DEVICE_INFO: {feature_bits} feature bits, not a multiple of 32")
    return DeviceInfo(device_id, vendor_id, feature_bits, config_size, max_vqueues)


def get_features(index: int, count: int) -> bytes:
    """Asks for `count` blocks of 32 feature bits from block `index`."""
    return _RANGE.pack(index, count)


def features(payload: bytes, index: int, count: int) -> int:
    """The blocks as one number, bit 0 being bit 32 * `index` of the device's features."""
    expected = _RANGE.size + 4 * count
    if len(payload) != expected:
        raise BadAnswer(f"GET_DEVICE_FEATURES: {len(payload)} bytes of answer, expected {expected}")
    got_index, got_count = _RANGE.unpack_from(payload)
    _echoed("GET_DEVICE_FEATURES", "block", got_index, index)
    _echoed("GET_DEVICE_FEATURES", "a number of blocks of", got_count, count)
    return int.from_bytes(payload[_RANGE.size :], "little")


def set_features(index: int, count: int, bits: int) -> bytes:
    """`bits`: as `features` returns them; OverflowError when they do not fit in `count` blocks."""
    return _RANGE.pack(index, count) + bits.to_bytes(4 * count, "little")


def get_config(offset: int, size: int) -> bytes:
    return _RANGE.pack(offset, size)


def config(payload: bytes, offset: int, size: int) -> ConfigData | None:
    """Answer of GET_CONFIG and SET_CONFIG for this range; None when the device refused."""
    if len(payload) < _CONFIG.size:
        raise BadAnswer(f"config: {len(payload)} bytes of answer, expected at least {_CONFIG.size}")
    generation, got_offset, got_size = _CONFIG.unpack_from(payload)
    data = payload[_CONFIG.size :]
    if len(data) != got_size:
        raise BadAnswer(f"config: {len(data)} bytes of data, announced as {got_size}")
    if got_size == 0 and size != 0:
        return None
    _echoed("config", "offset", got_offset, offset)
    _echoed("config", "size", got_size, size)
    return ConfigData(generation, data)


def set_config(generation: int, offset: int, data: bytes) -> bytes:
    return _CONFIG.pack(generation, offset, len(data)) + data


def status(payload: bytes, message: str) -> int:
    """Answer of GET_DEVICE_STATUS and SET_DEVICE_STATUS."""
    return _fixed(_WORD, payload, message)[0]


def word(value: int) -> bytes:
    """Payload of SET_DEVICE_STATUS, GET_VQUEUE, RESET_VQUEUE and GET_SHM: one number."""
    return _WORD.pack(value)


def vqueue(payload: bytes, index: int) -> QueueInfo:
    got, max_size, size, _, descriptor, driver, device = _fixed(_VQUEUE, payload, "GET_VQUEUE")
    _echoed("GET_VQUEUE", "queue", got, index)
    return QueueInfo(index, max_size, size, descriptor, driver, device)


def set_vqueue(index: int, size: int, descriptor: int, driver: int, device: int) -> bytes:
    return _VQUEUE.pack(index, 0, size, 0, descriptor, driver, device)
