"""Which device models there are, and where."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING

from devices.device import Device
from devices.errors import OptionError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

# The table a new device adds its line to. Modules are imported when a device is built, not before.
DEVICES: Mapping[str, str] = MappingProxyType(
    {
        "blk": "devices.blk:Blk",
        "net": "devices.net:Net",
        "rng": "devices.rng:Rng",
    }
)

ENTRY_POINT_GROUP = "virtio_dm.devices"


def names() -> list[str]:
    """The names `load` takes: the table's, then those of installed entry points."""
    installed = sorted(entry.name for entry in _entry_points())
    return [*DEVICES, *(name for name in installed if name not in DEVICES)]


def load(name: str) -> type[Device]:
    """The class of a device model: a name of the table, `FILE.py:CLASS`, or an entry point's name.

    A FILE is code of the host's user and runs with the rights of this process. Raises OptionError, one line.
    """
    if ":" in name or name.endswith(".py"):
        path, _, class_name = name.rpartition(":")
        if not path or not class_name:
            raise OptionError(f"device {name!r}: expected FILE.py:CLASS")
        return _checked(name, _member(name, _module_of(Path(path)), class_name))
    if target := DEVICES.get(name):
        module, _, class_name = target.partition(":")
        return _checked(name, getattr(importlib.import_module(module), class_name))
    for entry in _entry_points().select(name=name):
        try:
            return _checked(name, entry.load())
        except (ImportError, AttributeError) as error:
            raise OptionError(f"device {name!r}: its entry point {entry.value} does not load: {error}") from error
    raise OptionError(f"no device {name!r}; known: {', '.join(names())}, or FILE.py:CLASS")


def _entry_points() -> EntryPoints:
    from importlib.metadata import entry_points  # costs as much as all else here; most names are in the table

    return entry_points(group=ENTRY_POINT_GROUP)


def _module_of(path: Path) -> ModuleType:
    if not path.is_file():
        raise OptionError(f"device file {path}: no such file")
    spec = importlib.util.spec_from_file_location(f"virtio_dm_device_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise OptionError(f"device file {path}: not a Python file; name it {path.stem}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        raise OptionError(f"device file {path}: {type(error).__name__}: {error}") from error
    return module


def _member(name: str, module: ModuleType, class_name: str) -> object:
    if class_name not in vars(module):
        raise OptionError(f"device {name!r}: no class {class_name!r} in {module.__file__}")
    return vars(module)[class_name]


def _checked(name: str, device_class: object) -> type[Device]:
    if not (isinstance(device_class, type) and issubclass(device_class, Device)):
        raise OptionError(f"device {name!r}: {device_class!r} is no subclass of devices.Device")
    if not device_class.device_id:
        raise OptionError(f"device {name!r}: the class sets no device_id")
    return device_class
