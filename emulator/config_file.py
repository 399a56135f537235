"""The configuration file of `virtio-dm run --config`.

domid = 1
hypervisor = "local"
poll-us = 50
map-budget = 256

[[device]]
model = "blk"
path = "disk.img"
readonly = true
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from emulator.exit_codes import ExitCode, Failure
from emulator.machine import LARGEST_MAP_BUDGET, LAST_DOMID, HypervisorName, parse_hypervisor
from emulator.poll import parse_poll
from emulator.spec import Spec, SpecError, parse

RUN_KEYS = ("domid", "hypervisor", "poll-us", "map-budget", "device")


@dataclass(frozen=True, slots=True)
class RunFile:
    """What the file says; None where it says nothing."""

    domid: int | None = None
    hypervisor: HypervisorName | None = None
    spin_us: float | None = None
    map_budget: int | None = None
    devices: tuple[Spec, ...] = ()


def read(path: Path) -> RunFile:
    """Reads and checks the file. Raises Failure MISSING_FILE, USAGE, BAD_DEVICE."""
    import tomllib

    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise Failure(ExitCode.MISSING_FILE, f"cannot read {path}: {(error.strerror or '').lower()}") from error
    except ValueError as error:
        raise Failure(ExitCode.USAGE, f"{path}: not TOML: {error}") from error
    for key in content:
        if key not in RUN_KEYS:
            raise Failure(ExitCode.USAGE, f"{path}: no key {key!r}; known: {', '.join(RUN_KEYS)}")
    try:
        return RunFile(
            domid=_whole(content, "domid", LAST_DOMID),
            hypervisor=parse_hypervisor(_typed(content, "hypervisor", str)) if "hypervisor" in content else None,
            spin_us=parse_poll(_typed(content, "poll-us", int, str)) if "poll-us" in content else None,
            map_budget=_whole(content, "map-budget", LARGEST_MAP_BUDGET),
            devices=_devices(content.get("device", [])),
        )
    except SpecError as error:
        raise Failure(ExitCode.BAD_DEVICE, f"{path}: {error}") from error
    except ValueError as error:
        raise Failure(ExitCode.USAGE, f"{path}: {error}") from error


def _whole(content: dict[str, object], key: str, largest: int) -> int | None:
    value = content.get(key)
    if value is not None and not (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= largest):
        raise ValueError(f"{key} = {value!r} is not a number from 1 to {largest}")
    return value


def _devices(tables: object) -> tuple[Spec, ...]:
    if not isinstance(tables, list) or not all(isinstance(entry, dict) for entry in tables):
        raise SpecError("devices are written as [[device]] tables")
    return tuple(map(_device, tables))


def _device(entry: dict[str, object]) -> Spec:
    model = entry.get("model")
    if not isinstance(model, str):
        raise SpecError('a [[device]] table needs a model, as in model = "blk"')
    values = {key: value for key, value in entry.items() if key != "model"}
    _check_types(model, {key.replace("-", "_"): value for key, value in values.items()})
    options = tuple((key.replace("-", "_"), _text(key, value)) for key, value in values.items())
    return parse(str(Spec(model, options)))  # by the rules of the command line


def _check_types(model: str, values: dict[str, object]) -> None:
    """Where the model is known: what cannot be loaded is complained of by who builds it."""
    from devices import options, registry
    from devices.errors import OptionError

    try:
        device_class = registry.load(model)
    except (Exception, SystemExit):
        return
    try:
        options.check_types(device_class, values)
    except OptionError as error:
        raise SpecError(str(error)) from error


def _typed(content: dict[str, object], key: str, *types: type) -> str:
    if type(content[key]) not in types:
        expected = " or ".join({int: "an integer", str: "a string"}[each] for each in types)
        raise ValueError(f"{key} = {content[key]!r}: expected {expected}")
    return str(content[key])


def _text(key: str, value: object) -> str:
    """A TOML value as the command line would have it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int | str):
        return str(value)
    raise SpecError(f"{key} = {value!r}: expected a string, an integer, or true or false")
