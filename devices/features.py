"""Feature bits: masks of any width, their names, and the dependencies between them (virtio 1.3 section 2.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

F_INDIRECT_DESC = 28
F_EVENT_IDX = 29
F_VERSION_1 = 32
F_ACCESS_PLATFORM = 33
F_IN_ORDER = 35
F_RING_RESET = 40

TRANSPORT_NAMES: Mapping[int, str] = MappingProxyType(
    {
        F_INDIRECT_DESC: "VIRTIO_F_INDIRECT_DESC",
        F_EVENT_IDX: "VIRTIO_F_EVENT_IDX",
        F_VERSION_1: "VIRTIO_F_VERSION_1",
        F_ACCESS_PLATFORM: "VIRTIO_F_ACCESS_PLATFORM",
        F_IN_ORDER: "VIRTIO_F_IN_ORDER",
        F_RING_RESET: "VIRTIO_F_RING_RESET",
    }
)

# Bits 24 to 49 belong to the queues and the transport; all others to the device type.
RESERVED_MASK = (1 << 50) - (1 << 24)


def mask(*bits: int) -> int:
    """The feature set of the given bit numbers."""
    result = 0
    for bit in bits:
        result |= 1 << bit
    return result


def has(features: int, bit: int) -> bool:
    return features >> bit & 1 != 0


def bits(features: int) -> list[int]:
    """The bit numbers of a feature set, lowest first."""
    return [bit for bit in range(features.bit_length()) if features >> bit & 1]


@dataclass(frozen=True, slots=True)
class Requires:
    """Feature `bit` may be negotiated only with at least one bit of `any_of`. Several rows for one bit all apply."""

    bit: int
    any_of: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FeatureTable:
    """The feature bits of a device type: spec names by bit number, and the dependencies among them."""

    names: Mapping[int, str] = field(default_factory=dict)
    requires: tuple[Requires, ...] = ()

    def name(self, bit: int) -> str:
        """The name the specification gives the bit, or "bit N"."""
        return self.names.get(bit) or TRANSPORT_NAMES.get(bit) or f"bit {bit}"

    def unmet(self, features: int) -> str | None:
        """The first dependency that `features` breaks, in words; None if it keeps them all."""
        for rule in self.requires:
            if has(features, rule.bit) and not any(has(features, bit) for bit in rule.any_of):
                needed = " or ".join(self.name(bit) for bit in rule.any_of)
                return f"{self.name(rule.bit)} requires {needed}"
        return None
