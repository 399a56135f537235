"""Device specifications: `blk,path=disk.img,readonly=on` or `./my.py:Thing,key=value`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*\Z")
MAX_LENGTH = 2048  # bytes; it has to fit a store node


class SpecError(ValueError):
    """A specification that cannot be read. One line, for the person who wrote it."""


@dataclass(frozen=True, slots=True)
class Spec:
    """A device model and its options, as text: what is built, not yet whether it can be."""

    model: str
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return ",".join([_escape(self.model), *_format_pairs(self.options)])

    def replace(self, changes: Mapping[str, str]) -> Spec:
        """The same with other values for some options."""
        return Spec(self.model, tuple((dict(self.options) | dict(changes)).items()))

    def without(self, keys: Iterable[str]) -> Spec:
        """The same with the defaults of some options."""
        gone = set(keys)
        return Spec(self.model, tuple((key, value) for key, value in self.options if key not in gone))


def parse(text: str) -> Spec:
    """Reads `model,key=value,...`. A comma inside a value is written twice, as for QEMU. Raises SpecError."""
    if len(text.encode(errors="surrogateescape")) > MAX_LENGTH:
        raise SpecError(f"device specification of {len(text)} characters; {MAX_LENGTH} bytes are allowed")
    if not text.isprintable():
        raise SpecError(f"device specification {text!r} has characters that cannot be printed")
    model, *pairs = _split(text)
    if not model:
        raise SpecError(f"device specification {text!r} names no model; write for example blk,path=disk.img")
    if "=" in model and ":" not in model:
        raise SpecError(f"device specification {text!r} starts with an option; first the model, as in blk,{model}")
    return Spec(model, parse_pairs(pairs))


def parse_options(text: str) -> tuple[tuple[str, str], ...]:
    """Reads `key=value,...`, commas in values doubled. Raises SpecError."""
    return parse_pairs(_split(text)) if text else ()


def format_options(options: Mapping[str, str]) -> str:
    """The text that `parse_options` reads as `options`."""
    return ",".join(_format_pairs(options.items()))


def _split(text: str) -> list[str]:
    return [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]


def _escape(text: str) -> str:
    return text.replace(",", ",,")


def _format_pairs(pairs: Iterable[tuple[str, str]]) -> list[str]:
    return [f"{key}={_escape(value)}" for key, value in pairs]


def parse_pairs(parts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Reads one `key=value` each. Raises SpecError."""
    options: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals:
            raise SpecError(f"option {part!r} has no value; write key=value (a comma inside a value is written twice)")
        if not _KEY.match(key):
            raise SpecError(f"option name {key!r} is not a word; write key=value")
        key = key.replace("-", "_")
        if key in options:
            raise SpecError(f"option {key} is given twice")
        options[key] = value
    return tuple(options.items())
