"""Configuration spaces: declaration, storage, and what a feature set exposes."""

import subprocess
import sys

import numpy as np
import pytest

from devices.config_space import ConfigSpace, array, le16, le32, le64, u8


class Sample(ConfigSpace):
    first = le64(0)
    mac = array(u8, 6, 8, feature=1)
    either = le16(14, feature=(2, 3))
    last = le32(16, feature=4, writable=True)


def test_fields_are_stored_little_endian_at_their_offsets() -> None:
    config = Sample(0b11110)
    config.first = 0x0102030405060708
    config.mac = b"abcdef"
    config.either = 0x1234
    config.last = 0xDEADBEEF
    assert bytes(config.memory) == bytes.fromhex("0807060504030201") + b"abcdef" + bytes.fromhex("3412efbeadde")
    assert (config.first, config.mac, config.either, config.last) == (0x0102030405060708, b"abcdef", 0x1234, 0xDEADBEEF)


def test_memory_bytes_and_array_are_one_memory() -> None:
    config = Sample(0b11110)
    config.bytes[0] = 7
    assert config.first == 7
    assert config.array["first"] == 7
    config.array["last"] = 9
    assert config.last == 9
    assert config.memory[16] == 9
    assert config.bytes.dtype == np.uint8
    assert config.bytes.shape == (config.size,)
    assert config.array.shape == ()


@pytest.mark.parametrize(
    ("features", "size"), [(0, 8), (1 << 1, 14), (1 << 2, 16), (1 << 3, 16), (1 << 4, 20), (0b11110, 20)]
)
def test_the_space_ends_after_the_last_field_that_exists(features: int, size: int) -> None:
    config = Sample(features)
    assert config.size == len(config.memory) == len(config.bytes) == size
    assert Sample.size == 20


def test_a_field_without_its_feature_reads_zero_and_cannot_be_set() -> None:
    config = Sample(1 << 4)
    assert config.mac == bytes(6)
    with pytest.raises(ValueError, match="config field mac needs feature bit"):
        config.mac = b"abcdef"
    with pytest.raises(ValueError, match="config field either needs feature bit"):
        config.either = 1


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_a_value_that_does_not_fit_is_refused(value: int) -> None:
    config = Sample(0)
    with pytest.raises(ValueError, match=r"config field first: .* does not fit le64"):
        config.first = value
    assert config.first == 0


def test_an_array_takes_exactly_its_size() -> None:
    with pytest.raises(ValueError, match="5 bytes given, it has 6"):
        Sample(1 << 1).mac = b"short"


def test_overlapping_fields_are_refused_at_declaration() -> None:
    with pytest.raises(TypeError, match=r"Overlap\.second: offset 3 is inside the field before it"):

        class Overlap(ConfigSpace):
            first = le32(0)
            second = u8(3)


def test_fields_past_a_declared_size_are_refused() -> None:
    with pytest.raises(TypeError, match="fields end at 4, past its size 3"):

        class TooLong(ConfigSpace, size=3):
            first = le32(0)


def test_a_declared_size_covers_padding_behind_the_last_field() -> None:
    class Padded(ConfigSpace, size=16):
        first = le32(0)

    assert Padded.size == Padded(0).size == 16


def test_an_array_of_one_item_is_refused() -> None:
    with pytest.raises(TypeError, match="declare a single item as le16"):
        array(le16, 1, 0)


def test_a_subclass_adds_to_the_layout() -> None:
    class Longer(Sample):
        more = le32(20)

    assert [field.name for field in Longer.fields] == ["first", "mac", "either", "last", "more"]


def test_an_empty_space_has_size_zero() -> None:
    assert ConfigSpace(0).size == 0
    assert ConfigSpace(0).bytes.shape == (0,)


def test_declarations_are_found_on_the_class() -> None:
    assert Sample.last.field.writable
    assert Sample.mac.field.count == 6


def test_numpy_is_loaded_only_when_asked_for() -> None:
    modules = "devices.blk, devices.net, devices.rng, devices.options, devices.registry"
    code = f"import sys, {modules}; print('numpy' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
