"""Specifications as people write them, and as they come back out of the store."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.spec import MAX_LENGTH, Spec, SpecError, format_options, parse, parse_options

printable = st.text([chr(code) for code in range(0x20, 0x7F)] + list("äß漢"), max_size=20)
keys = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)


def test_a_model_with_options() -> None:
    assert parse("blk,path=disk.img,readonly=on") == Spec("blk", (("path", "disk.img"), ("readonly", "on")))


def test_a_class_in_a_file() -> None:
    assert parse("./my.py:Thing,key=value") == Spec("./my.py:Thing", (("key", "value"),))


def test_a_doubled_comma_is_one_in_the_value() -> None:
    assert parse("blk,path=a,,b,,,serial=x") == Spec("blk", (("path", "a,b,"), ("serial", "x")))


def test_dashes_and_underscores_in_names_are_the_same() -> None:
    assert parse("blk,block-size=512") == parse("blk,block_size=512")


def test_values_may_be_empty_or_hold_equals_signs() -> None:
    assert parse("x,a=,b=1=2").options == (("a", ""), ("b", "1=2"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "names no model"),
        (",path=x", "names no model"),
        ("path=x", "first the model"),
        ("blk,readonly", "write key=value"),
        ("blk,", "write key=value"),
        ("blk,=x", "is not a word"),
        ("blk,a b=x", "is not a word"),
        ("blk,a=1,a=2", "given twice"),
        ("blk,a-b=1,a_b=2", "given twice"),
        ("blk,path=a\nb", "cannot be printed"),
        ("blk,path=a\0b", "cannot be printed"),
        ("x" * (MAX_LENGTH + 1), "are allowed"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_reason(text: str, complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint):
        parse(text)


@given(printable.filter(lambda model: model and "=" not in model), st.dictionaries(keys, printable, max_size=4))
def test_text_and_specification_are_two_forms_of_one_thing(model: str, options: dict[str, str]) -> None:
    spec = Spec(model, tuple(options.items()))
    assert parse(str(spec)) == spec


@given(st.dictionaries(keys, printable, max_size=4))
def test_options_alone_too(options: dict[str, str]) -> None:
    assert dict(parse_options(format_options(options))) == options


def test_some_options_replaced() -> None:
    spec = parse("net,link=up,mtu=1500").replace({"link": "down", "speed": "10"})
    assert str(spec) == "net,link=down,mtu=1500,speed=10"
