"""`virtio-dm devices`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import click

from emulator.exit_codes import ExitCode, Failure
from emulator.text_table import lines

if TYPE_CHECKING:
    from devices.device import Device


@click.command("devices")
@click.argument("name", required=False, metavar="[MODEL]")
def command(name: str | None) -> None:
    """List the device models, or describe one.

    MODEL is a name from the list, or FILE.py:CLASS. Described are its options, what `update` can change, its
    virtqueues, its features, and its configuration space field by field.
    """
    from devices import registry
    from devices.errors import OptionError

    try:
        if name is not None:
            for line in describe(registry.load(name)):
                click.echo(line)
            return
        models = {known: registry.load(known) for known in registry.names()}
    except OptionError as error:
        raise Failure(ExitCode.BAD_DEVICE, str(error)) from error
    except SystemExit as error:
        raise Failure(ExitCode.BAD_DEVICE, f"{name}: it ends the process that loads it") from error
    rows = [(known, model.device_id, summary(model)) for known, model in models.items()]
    for line in lines(("MODEL", "ID", "WHAT IT IS"), rows):
        click.echo(line)


def summary(model: type[Device]) -> str:
    """The first line of what a model says of itself."""
    text = inspect.getdoc(model) or ""
    return "" if text == inspect.getdoc(model.__base__) else text.partition("\n")[0]


def describe(model: type[Device]) -> Iterator[str]:
    """A model as lines of text."""
    from devices import options

    yield inspect.getdoc(model) or model.__name__
    yield ""
    yield from _table("options, as KEY=VALUE", ("KEY", "TAKES", "DEFAULT"), _rows(options.describe(model)))
    yield from _table(
        "changed by `virtio-dm update`", ("KEY", "TAKES", "DEFAULT"), _rows(options.describe_update(model))
    )
    queues = [
        (index, queue.name, queue.size, "" if queue.feature is None else _bit(model, queue.feature))
        for index, queue in enumerate(model.queues)
    ]
    yield from _table("virtqueues", ("INDEX", "NAME", "SIZE", "FEATURE"), queues)
    yield from _table("features", ("BIT", "NAME", "OFFERED"), _features(model))
    fields = [
        (
            field.offset,
            field.size,
            field.name,
            field.kind if field.count == 1 else f"{field.kind}[{field.count}]",
            "read-write" if field.writable else "read-only",
            " or ".join(_bit(model, bit) for bit in field.feature),
        )
        for field in model.config_space.fields
    ]
    yield from _table("configuration space", ("OFFSET", "SIZE", "FIELD", "TYPE", "DRIVER", "FEATURE"), fields)


def _table(title: str, header: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> Iterator[str]:
    if rows:
        yield f"{title}:"
        yield from (f"  {line}" for line in lines(header, rows))
        yield ""


def _rows(parameters: Mapping[str, inspect.Parameter]) -> Sequence[tuple[object, ...]]:
    return [
        (name, _annotation(entry), "required" if entry.default is entry.empty else _default(entry.default))
        for name, entry in parameters.items()
    ]


def _annotation(entry: inspect.Parameter) -> str:
    hint = entry.annotation
    return hint if isinstance(hint, str) else getattr(hint, "__name__", str(hint))


def _default(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "-" if value is None else str(value)


def _features(model: type[Device]) -> Sequence[tuple[object, ...]]:
    from devices.features import has

    def offered(bit: int) -> str:
        return "always" if has(model.features, bit) else "may be" if has(model.offers, bit) else "never"

    return [(bit, name, offered(bit)) for bit, name in sorted(model.feature_table.names.items())]


def _bit(model: type[Device], bit: int) -> str:
    return f"{model.feature_table.name(bit)} ({bit})"
