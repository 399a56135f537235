"""protocol/virtio_msg_xen.h, docs/protocol.md, the engine and the guest driver say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cpp_ring import MAX_MESSAGE, PROTOCOL_VERSION, error_name
from cpp_ring.xenbus_states import State
from guest import messages

ROOT = Path(__file__).parent.parent
HEADER = (ROOT / "protocol" / "virtio_msg_xen.h").read_text()
DOCUMENT = (ROOT / "docs" / "protocol.md").read_text()


def enum(name: str) -> dict[str, int]:
    body = re.search(rf"enum {name} {{(.*?)}};", HEADER, re.DOTALL)
    assert body, name
    return {key: int(value, 0) for key, value in re.findall(r"(VMSG_\w+) = (0x[0-9a-f]+|\d+)", body[1])}


ERRORS = {key.removeprefix("VMSG_XEN_").lower(): value for key, value in enum("vmsg_xen_error").items()}
MESSAGES = {key.removeprefix("VMSG_"): value for key, value in enum("vmsg_id").items() if value < 0x40}


@pytest.mark.parametrize(("name", "code"), ERRORS.items())
def test_every_error_code_has_its_name_in_the_engine(name: str, code: int) -> None:
    assert error_name(code) == name


@pytest.mark.parametrize("name", [name for name in ERRORS if name != "ok"])
def test_every_error_code_is_documented(name: str) -> None:
    assert re.search(rf"\b{name}\b", DOCUMENT)


def test_a_code_without_a_name_is_unknown() -> None:
    assert {error_name(code) for code in range(256) if code not in ERRORS.values()} == {"unknown"}


@pytest.mark.parametrize(("name", "number"), MESSAGES.items())
def test_every_message_has_one_number_in_header_document_and_driver(name: str, number: int) -> None:
    assert f"|0x{number:02x}|{name}|" in DOCUMENT
    assert getattr(messages, name) == number


def test_the_states_of_xenbus_have_their_numbers_in_document_and_code() -> None:
    for state in State:
        name = state.name.title().replace("_", "")
        assert re.search(rf"^\|.*\b{state.value} {name}\b", DOCUMENT, re.MULTILINE), name


def test_sizes_and_version_are_the_headers() -> None:
    assert f"#define VMSG_MAX_SIZE {MAX_MESSAGE} " in HEADER
    assert f"#define VMSG_XEN_PROTOCOL_VERSION {PROTOCOL_VERSION}\n" in HEADER
    assert f"up to {MAX_MESSAGE} bytes" in DOCUMENT
