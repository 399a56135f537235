"""SECURITY.md names the test of each threat, every test it names exists, and no threat test is forgotten."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
TABLE = (TESTS.parent / "SECURITY.md").read_text()
NOT_YET = {27, 28}


def named() -> set[str]:
    return set(re.findall(r"`((?:threats|cpp|guest_module|devices|xen)/(?:\w+/)?\w+\.(?:py|cpp))`", TABLE))


def test_every_test_that_is_named_exists() -> None:
    assert {name for name in named() if not (TESTS / name).is_file()} == set()


def test_every_threat_test_is_named() -> None:
    found = [
        *TESTS.glob("threats/**/test_*.py"),
        *TESTS.glob("cpp/threat_*.cpp"),
        *TESTS.glob("guest_module/threat_*.cpp"),
    ]
    assert {str(path.relative_to(TESTS)) for path in found} <= named()


def test_every_threat_has_a_test_or_is_said_to_have_none() -> None:
    rows = dict(re.findall(r"^\|(\d+)\|.*\|([^|]*)\|$", TABLE, re.MULTILINE))
    assert {int(number) for number in rows} == set(range(1, 32))
    assert {int(number) for number, tests in rows.items() if tests.strip() == "-"} == NOT_YET
