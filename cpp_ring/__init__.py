"""The engine of virtio-dm: config ring, virtqueues, hypervisor interface (C++), and the xenstore client (Python).

The names of the C++ half are resolved at first use, so that `cpp_ring.store` costs neither the extension nor numpy.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cpp_ring._core import *  # noqa: F403


def __getattr__(name: str) -> object:
    if name.startswith("_") or name in ("machine", "store", "xen", "xs_wire"):  # modules, which import finds by itself
        raise AttributeError(f"module 'cpp_ring' has no attribute {name!r}")
    try:
        from cpp_ring import _core
    except ImportError as error:
        raise ImportError(f"cpp_ring is not built: run scripts/setup ({error})") from error
    value = globals()[name] = getattr(_core, name)
    return value
