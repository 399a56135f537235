"""How long a device stays awake after its last work, as people write it and as it is by default."""

import math

import pytest

import cpp_ring
from emulator.poll import Polling, format_poll, parse_poll


@pytest.mark.parametrize(("text", "us"), [("0", 0.0), ("50", 50.0), ("1000000", 1e6), ("always", math.inf)])
def test_what_people_write_is_read_and_written_back(text: str, us: float) -> None:
    assert parse_poll(text) == us
    assert format_poll(us) == text


@pytest.mark.parametrize(("wake", "most"), [(0.0, 50.0), (3.0, 50.0), (20.0, 320.0), (100.0, 1600.0), (9e4, 2000.0)])
def test_the_default_follows_what_it_costs_to_be_woken(
    monkeypatch: pytest.MonkeyPatch, wake: float, most: float
) -> None:
    monkeypatch.setattr(cpp_ring, "measure_wake_us", lambda: wake, raising=False)
    assert Polling.default() == Polling(50.0, most)


def test_the_default_can_be_measured_here() -> None:
    assert 50.0 <= Polling.default().most <= 2000.0
