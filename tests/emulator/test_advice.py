"""Whatever closes a device, or makes it need a reset, is one line that says what, where, and what to do."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from cpp_ring import error_name
from emulator.advice import CODES, GUESTS, RELOAD, explain
from emulator.frontend_nodes import NodeError
from tests.emulator.test_frontend_nodes import GOOD, channel

NAMES = sorted({error_name(code) for code in range(256)} - {"ok", "unknown"})
RUNNING = (Path(__file__).parent.parent.parent / "docs" / "running.md").read_text()
HOME = "/local/domain/7/device/virtio-msg/0"


@pytest.mark.parametrize("name", NAMES)
def test_every_error_code_comes_with_what_to_do(name: str) -> None:
    line = explain(f"{name} 12", HOME)
    reason, _, rest = line.partition(" (")
    says, _, advice = rest.partition("); ")
    assert reason == f"{name} 12"
    assert says
    assert len(advice) > 20
    assert line.isprintable()
    assert len(line) < 220


def test_there_is_advice_for_no_code_that_is_none() -> None:
    assert {*CODES, "host"} == set(NAMES)


def test_a_page_is_named_by_its_node() -> None:
    assert explain("bad_magic 4711", HOME) == f"bad_magic 4711 (the first word in the page of fe-to-be-ref); {RELOAD}"


@pytest.mark.parametrize("node", GOOD)
@pytest.mark.parametrize("value", [None, "garbage"])
def test_a_node_that_is_missing_or_nonsense_is_named_with_its_place(node: str, value: str | None) -> None:
    nodes = {**GOOD, node: value}
    with pytest.raises(NodeError) as refusal:
        channel({name: text for name, text in nodes.items() if text is not None})
    line = explain(f"store {refusal.value}", HOME)
    assert line.startswith(f"store {node}: ")
    assert f", in {HOME}; " in line
    assert ("has to write it" in line) == (value is None)
    assert ("driver of protocol version 1" in line) == (value is not None and node == "version")


@pytest.mark.parametrize("number", GUESTS)
def test_what_the_guest_did_not_grant_is_its_drivers_business(number: int) -> None:
    reason = f"host {number} cannot bind to port 4000 of domain 7: Invalid argument"
    line = explain(reason, HOME)
    assert line.startswith(f"{reason}; the driver in the domain has to grant or offer it to this domain")


def test_what_the_host_lacks_is_the_hosts_business() -> None:
    advice = "this host lacks something: see `virtio-dm doctor`, `free`, `dmesg`"
    assert explain(f"host {errno.ENOMEM}", HOME) == f"host 12 (Cannot allocate memory); {advice}"
    assert explain(f"host {errno.ENOSPC} cannot bind: full", HOME) == f"host 28 cannot bind: full; {advice}"
    assert explain("host 22 cannot restrict /dev/xen/evtchn", HOME).endswith(advice)
    assert "see the lines above" in explain("host: MemoryError", HOME)


def test_the_examples_of_the_document_are_what_the_log_says() -> None:
    examples = re.findall(r"device (\d): (?:closed|needs a reset): ((.*?)(?: \(|, in |; ).*)", RUNNING)
    assert len(examples) == 3
    for devid, line, reason in examples:
        assert explain(reason, f"{HOME[:-1]}{devid}") == line


def test_a_reason_that_nobody_knows_has_advice_too() -> None:
    assert explain("unknown 5", HOME) == f"unknown 5; {RELOAD}"
