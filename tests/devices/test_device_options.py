"""Options as text: what converts, and one clear line for everything else."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import pytest

from devices import Device, DeviceError, OptionError
from devices.options import Size, build, check_types, check_update, describe, parse_int, parse_size, update
from devices.registry import load
from devices.rng import Rng


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


def backwards(text: str) -> str:
    if not text:
        raise ValueError("expected some text")
    return text[::-1]


class Gadget(Device):
    name = "gadget"
    device_id = 7

    def __init__(
        self,
        *,
        path: Path,
        enabled: bool = False,
        count: int = 1,
        limit: Size | None = None,
        mode: Literal["fast", "slow", 3] = "fast",
        colour: Colour = Colour.RED,
        word: Annotated[str, backwards] = "",
        note: str = "",
    ) -> None:
        super().__init__()
        if count > 99:
            raise ValueError(f"count={count} is over 99")
        if count == 66:
            raise OptionError("gadget: said by the device itself")
        self.values = (path, enabled, count, limit, mode, colour, word, note)
        self.limit: int | None = limit

    def update(self, *, limit: Size | None = None) -> None:
        if limit == 13:
            raise ValueError("13 is unlucky")
        if limit == 14:
            raise DeviceError("no room for 14 bytes")
        self.limit = limit


def test_every_kind_of_annotation_is_converted() -> None:
    text = {
        "path": "/a/b", "enabled": "Yes", "count": "0x10", "limit": "2K",
        "mode": "3", "colour": "blue", "word": "abc", "note": "x=y",
    }  # fmt: skip
    assert build(Gadget, text).values == (Path("/a/b"), True, 16, 2048, 3, Colour.BLUE, "cba", "x=y")


def test_defaults_stay() -> None:
    assert build(Gadget, {"path": "p"}).values == (Path("p"), False, 1, None, "fast", Colour.RED, "", "")


@pytest.mark.parametrize("text", ["on", "true", "yes", "1", "ON"])
def test_true(text: str) -> None:
    assert build(Gadget, {"path": "p", "enabled": text}).values[1] is True


@pytest.mark.parametrize("text", ["off", "false", "no", "0", "False"])
def test_false(text: str) -> None:
    assert build(Gadget, {"path": "p", "enabled": text}).values[1] is False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "gadget: option 'path' is missing; known: path, enabled, count, limit, mode, colour, word, note"),
        (
            {"path": "p", "size": "1"},
            "gadget: no option 'size'; known: path, enabled, count, limit, mode, colour, word, note",
        ),
        ({"path": ""}, "gadget: path=: expected a path"),
        ({"path": "p", "enabled": "?"}, "gadget: enabled=?: expected one of on, true, yes, 1, off, false, no, 0"),
        ({"path": "p", "count": "many"}, "gadget: count=many: expected a number, as 512 or 0x200"),
        ({"path": "p", "count": "--1"}, "gadget: count=--1: expected a number, as 512 or 0x200"),
        ({"path": "p", "limit": "10Q"}, "gadget: limit=10Q: expected a size, as 1048576, 512K or 10G"),
        ({"path": "p", "mode": "medium"}, "gadget: mode=medium: expected one of fast, slow, 3"),
        ({"path": "p", "colour": "green"}, "gadget: colour=green: expected one of red, blue"),
        ({"path": "p", "word": ""}, "gadget: word=: expected some text"),
        ({"path": "p", "count": "100"}, "gadget: count=100 is over 99"),
        ({"path": "p", "count": "66"}, "gadget: said by the device itself"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(options: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        build(Gadget, options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("512", 512), ("1k", 1024), ("4K", 4096), ("3M", 3 << 20), ("2G", 2 << 30), ("1T", 1 << 40)],
)  # fmt: skip
def test_sizes(text: str, value: int) -> None:
    assert parse_size(text) == value


@pytest.mark.parametrize("text", ["", "K", "-1", "1.5G", "1_000", " 1", "1 K", "0x", "0xG", "\u0661", "KK"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size"):
        parse_size(text)


def test_numbers_are_decimal_unless_they_say_so() -> None:
    assert (parse_int("010"), parse_int("0X0a")) == (10, 10)


def test_a_model_without_init_has_no_options() -> None:
    assert isinstance(build(Rng, {}), Rng)
    assert describe(Rng) == {}
    with pytest.raises(OptionError, match="rng: no option 'features'; known: none"):
        build(Rng, {"features": "1"})


def test_options_of_a_live_device() -> None:
    device = build(Gadget, {"path": "p"})
    update(device, {"limit": "1M"})
    assert device.limit == 1 << 20
    with pytest.raises(OptionError, match="gadget: no option 'path'; known: limit"):
        update(device, {"path": "q"})
    with pytest.raises(OptionError, match="gadget: 13 is unlucky"):
        update(device, {"limit": "13"})
    with pytest.raises(DeviceError, match="no room for 14 bytes"):
        update(device, {"limit": "14"})
    with pytest.raises(OptionError, match="rng: no option 'limit'; known: none"):
        update(Rng(), {"limit": "1"})


def test_an_update_is_checked_without_a_device() -> None:
    check_update(Gadget, {"limit": "1M"})
    check_update(Gadget, {"limit": "13"})  # the device itself judges values
    check_update(Rng, {})
    for wrong, complaint in (({"path": "q"}, "no option 'path'; known: limit"), ({"limit": "x"}, "expected a size")):
        with pytest.raises(OptionError, match=f"gadget: .*{complaint}"):
            check_update(Gadget, wrong)
    with pytest.raises(OptionError, match="rng: no option 'limit'; known: none"):
        check_update(Rng, {"limit": "1"})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("path", 7, "a string"),
        ("note", True, "a string"),
        ("enabled", 1, "true or false or a string"),
        ("count", True, "an integer or a string"),
        ("limit", 1.5, "an integer or a string"),
        ("mode", False, "a string or an integer"),
        ("colour", 3, "a string"),
        ("word", ["a"], "a string"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(key: str, value: object, expected: str) -> None:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    with pytest.raises(OptionError) as caught:
        check_types(Gadget, {key: value})
    assert str(caught.value) == f"gadget: {key} = {text}: expected {expected}"


def test_values_of_the_right_type_and_text_for_all_pass() -> None:
    check_types(Gadget, {"path": "p", "enabled": True, "count": 2, "limit": 4096, "mode": 3, "unknown": 1.5})
    check_types(Gadget, dict.fromkeys(describe(Gadget), "text"))
    check_types(Rng, {"limit": 1})


def test_an_annotation_that_text_cannot_express_is_the_models_fault() -> None:
    class Odd(Device):
        name = "odd"
        device_id = 1

        def __init__(self, *, table: dict[str, int]) -> None: ...

    with pytest.raises(TypeError, match="cannot be written as text"):
        build(Odd, {"table": "x"})


@pytest.mark.parametrize("name", ["blk", "net", "rng"])
def test_options_of_the_models_are_described(name: str) -> None:
    model = load(name)
    assert model.name == name
    assert all(option in (model.__doc__ or "") for option in describe(model))
