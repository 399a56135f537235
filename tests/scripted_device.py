"""A device that answers messages as a plain virtio device would; a test replaces single answers."""

from __future__ import annotations

import struct
from collections.abc import Callable

from guest import messages
from guest.device import ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, VERSION_1


class ScriptedDevice:
    """Answers every message by the book. `lies`: message id -> answer payload, or a function of the request payload."""

    def __init__(
        self,
        device_id: int = 4,
        *,
        features: int = 0,
        config: bytes = b"",
        queue_sizes: tuple[int, ...] = (8,),
    ) -> None:
        self.device_id = device_id
        self.features = features | 1 << VERSION_1
        self.config = bytearray(config)
        self.queue_sizes = queue_sizes
        self.generation = 0
        self.status = 0
        self.driver_features = 0
        self.queues: dict[int, tuple[int, int, int, int]] = {}  # index -> size and the three areas
        self.seen: list[tuple[int, bytes]] = []
        self.lies: dict[int, bytes | Callable[[bytes], bytes]] = {}

    def answer(self, msg_id: int, payload: bytes) -> bytes:
        self.seen.append((msg_id, payload))
        lie = self.lies.get(msg_id)
        if lie is not None:
            return lie if isinstance(lie, bytes) else lie(payload)
        return self.honest(msg_id, payload)

    def honest(self, msg_id: int, payload: bytes) -> bytes:
        match msg_id:
            case messages.GET_DEVICE_INFO:
                return struct.pack("<5I2H", self.device_id, 0, 64, len(self.config), len(self.queue_sizes), 0, 0)
            case messages.GET_DEVICE_FEATURES:
                index, count = struct.unpack("<2I", payload)
                blocks = (self.features >> 32 * index) & ((1 << 32 * count) - 1)
                return payload + int(blocks).to_bytes(4 * count, "little")
            case messages.SET_DRIVER_FEATURES:
                self.driver_features = int.from_bytes(payload[8:], "little")
                return b""
            case messages.GET_CONFIG:
                offset, size = struct.unpack("<2I", payload)
                data = self.config[offset : offset + size]
                data = data if len(data) == size else bytearray()
                return struct.pack("<3I", self.generation, offset, len(data)) + data
            case messages.SET_CONFIG:
                _, offset, size = struct.unpack_from("<3I", payload)
                self.config[offset : offset + size] = payload[12:]
                return struct.pack("<3I", self.generation, offset, size) + payload[12:]
            case messages.GET_DEVICE_STATUS:
                return struct.pack("<I", self.status)
            case messages.SET_DEVICE_STATUS:
                (self.status,) = struct.unpack("<I", payload)
                if self.status == 0:
                    self.queues.clear()
                return payload
            case messages.GET_VQUEUE:
                (index,) = struct.unpack("<I", payload)
                largest = self.queue_sizes[index] if index < len(self.queue_sizes) else 0
                size, *areas = self.queues.get(index, (0, 0, 0, 0))
                return struct.pack("<4I3Q", index, largest, size, 0, *areas)
            case messages.SET_VQUEUE:
                index, _, size, _, *areas = struct.unpack("<4I3Q", payload)
                self.queues[index] = (size, areas[0], areas[1], areas[2])
                return b""
        raise AssertionError(f"message {msg_id:#x}")

    @property
    def message_ids(self) -> list[int]:
        return [msg_id for msg_id, _ in self.seen]

    @property
    def statuses(self) -> list[int]:
        """What the driver wrote into the device status."""
        return [struct.unpack("<I", data)[0] for msg_id, data in self.seen if msg_id == messages.SET_DEVICE_STATUS]


PROBED = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK
