"""Device options as text, converted by the annotations of the model's keyword arguments.

`blk,path=disk.img,readonly=on` gives `build(Blk, {"path": "disk.img", "readonly": "on"})`, which calls
`Blk(path=Path("disk.img"), readonly=True)` for `def __init__(self, *, path: Path, readonly: bool = False)`.

Annotations and what they take: `str`; `Path`; `bool` (on/off, true/false, yes/no, 1/0); `int` (decimal, or 0x...);
`Size`, bytes (an int with an optional K, M, G or T, powers of 1024); `Literal[...]`; an `Enum` (its values);
`X | None` (as X); `Annotated[X, convert]` where `convert(text)` raises ValueError.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NewType, TypeVar, Union, get_args, get_origin, get_type_hints

from devices.device import Device
from devices.errors import OptionError

Size = NewType("Size", int)
"""A number of bytes."""

_D = TypeVar("_D", bound=Device)
_BOOL = {"on": True, "true": True, "yes": True, "1": True, "off": False, "false": False, "no": False, "0": False}
_TYPE_NAMES: dict[type, str] = {str: "a string", int: "an integer", bool: "true or false"}
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def build(device_class: type[_D], options: Mapping[str, str]) -> _D:
    """A device made from text options, not opened. Raises OptionError, one line."""
    label = device_class.name
    # A class that writes no __init__ has no options; those of the base class are for its subclasses to pass.
    maker = None if device_class.__init__ is Device.__init__ else device_class.__init__
    arguments = _convert(label, maker, options)
    try:
        return device_class(**arguments)
    except OptionError:
        raise
    except ValueError as error:
        raise OptionError(f"{label}: {error}" if not str(error).startswith(label) else str(error)) from error


def update(device: Device, options: Mapping[str, str]) -> None:
    """Changes options of a live device. Raises OptionError for the text, DeviceError if the device cannot."""
    method = None if type(device).update is Device.update else device.update
    arguments = _convert(device.name, method, options)
    try:
        device.update(**arguments)
    except ValueError as error:
        raise OptionError(f"{device.name}: {error}") from error


def check_update(device_class: type[Device], options: Mapping[str, str]) -> None:
    """Whether `update` takes options of these names and kinds; a live device may still refuse. Raises OptionError."""
    _convert(device_class.name, None if device_class.update is Device.update else device_class.update, options)


def check_types(device_class: type[Device], values: Mapping[str, object]) -> None:
    """Options with the types that a configuration file has: a string for each, a number or a truth value for those
    that are one. Names that the model does not know are not looked at. Raises OptionError, one line.
    """
    hints = get_type_hints(device_class.__init__, include_extras=True)
    for key in describe(device_class).keys() & values.keys():
        types = (*_types(hints.get(key, str)), str)
        value = values[key]
        if type(value) not in types:
            text = str(value).lower() if isinstance(value, bool) else repr(value)  # as the file has it
            expected = " or ".join(dict.fromkeys(_TYPE_NAMES[each] for each in types))
            raise OptionError(f"{device_class.name}: {key} = {text}: expected {expected}")


def describe(device_class: type[Device]) -> dict[str, inspect.Parameter]:
    """The options of a model by name, in the order of its declaration."""
    return {} if device_class.__init__ is Device.__init__ else _parameters(device_class.__init__)


def describe_update(device_class: type[Device]) -> dict[str, inspect.Parameter]:
    """The options that `update` can change, by name."""
    return {} if device_class.update is Device.update else _parameters(device_class.update)


def _parameters(function: Callable[..., Any] | None) -> dict[str, inspect.Parameter]:
    if function is None:
        return {}
    parameters = inspect.signature(function).parameters
    return {name: entry for name, entry in parameters.items() if entry.kind is entry.KEYWORD_ONLY}


def _convert(label: str, function: Callable[..., Any] | None, options: Mapping[str, str]) -> dict[str, Any]:
    parameters = _parameters(function)
    known = ", ".join(parameters) or "none"
    for key in options:
        if key not in parameters:
            raise OptionError(f"{label}: no option {key!r}; known: {known}")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in options:
            raise OptionError(f"{label}: option {name!r} is missing; known: {known}")
    hints = get_type_hints(function, include_extras=True) if function else {}
    result = {}
    for key, text in options.items():
        try:
            result[key] = _value(hints.get(key, str), text)
        except ValueError as error:
            raise OptionError(f"{label}: {key}={text}: {error}") from None
    return result


def _value(hint: Any, text: str) -> Any:
    origin = get_origin(hint)
    if origin is Annotated:
        return hint.__metadata__[0](text)
    if origin in (Union, UnionType):
        choices = [choice for choice in get_args(hint) if choice is not NoneType]
        if len(choices) == 1:
            return _value(choices[0], text)
    if origin is Literal:
        return _one_of({str(value): value for value in get_args(hint)}, text)
    if hint is bool:
        return _one_of(_BOOL, text.lower())
    if hint is Size:
        return parse_size(text)
    if hint is int:
        return -parse_int(text[1:]) if text.startswith("-") else parse_int(text)
    if hint is str:
        return text
    if hint is Path:
        if not text:
            raise ValueError("expected a path")
        return Path(text)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _one_of({str(member.value): member for member in hint}, text)
    raise TypeError(f"an option annotated {hint!r} cannot be written as text")


def _types(hint: Any) -> tuple[type, ...]:
    """What a value of the annotation may be besides text."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return tuple(each for choice in get_args(hint) for each in _types(choice))
    if origin is Literal:
        return tuple(type(value) for value in get_args(hint) if type(value) in _TYPE_NAMES)
    if hint in (int, Size):
        return (int,)
    return (bool,) if hint is bool else ()


def _one_of(values: Mapping[str, Any], text: str) -> Any:
    if text not in values:
        raise ValueError(f"expected one of {', '.join(values)}")
    return values[text]


def parse_int(text: str) -> int:
    """A number, 0 or more, in decimal or with 0x in hexadecimal. Raises ValueError."""
    digits, base = (text[2:], 16) if text[:2].lower() == "0x" else (text, 10)
    if not (digits.isascii() and digits.isalnum()):
        raise ValueError("expected a number, as 512 or 0x200")
    try:
        return int(digits, base)
    except ValueError:
        raise ValueError("expected a number, as 512 or 0x200") from None


def parse_size(text: str) -> Size:
    """A number of bytes with an optional K, M, G or T, powers of 1024. Raises ValueError."""
    unit = _UNITS.get(text[-1:].upper())
    try:
        return Size(parse_int(text[:-1]) * unit if unit else parse_int(text))
    except ValueError:
        raise ValueError("expected a size, as 1048576, 512K or 10G") from None
