"""Two processes that spin get two cores where there are two, and it is known when they did not."""

from __future__ import annotations

from pathlib import Path

import pytest

from emulator.cpus import Pair, choose_pair, count_cores


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("emulator.cpus._CPUS", tmp_path)
    return tmp_path


def topology(sysfs: Path, cpu: int, **nodes: object) -> None:
    directory = sysfs / f"cpu{cpu}" / "topology"
    directory.mkdir(parents=True)
    for name, value in nodes.items():
        (directory / name).write_text(f"{value}\n")


def test_neighbours_that_are_threads_of_one_core_are_passed_over(sysfs: Path) -> None:
    for cpu, siblings in enumerate(("0-1", "0-1", "2-3", "2-3")):
        topology(sysfs, cpu, thread_siblings_list=siblings, physical_package_id=0, core_id=cpu // 2)
    assert choose_pair([0, 1, 2, 3]) == Pair(0, 2, siblings=False)
    assert choose_pair([0, 1]) == Pair(0, 1, siblings=True)
    assert (count_cores([0, 1, 2, 3]), count_cores([0, 1])) == (2, 1)


def test_a_core_of_the_same_package_goes_before_one_of_another(sysfs: Path) -> None:
    for cpu in range(4):
        topology(sysfs, cpu, thread_siblings_list=cpu, physical_package_id=cpu % 2)
    assert choose_pair([0, 1, 2, 3]) == Pair(0, 2, siblings=False)
    assert choose_pair([0, 1]) == Pair(0, 1, siblings=False)


def test_cores_are_told_by_their_numbers_where_there_is_no_list(sysfs: Path) -> None:
    for cpu in range(4):
        topology(sysfs, cpu, physical_package_id=cpu // 2, core_id=0)
    assert choose_pair([0, 1, 2, 3]) == Pair(0, 2, siblings=False)
    assert count_cores([0, 1, 2, 3]) == 2


def test_a_kernel_that_does_not_say_gives_any_two(sysfs: Path) -> None:
    assert choose_pair([3, 5, 9]) == Pair(3, 5, siblings=None)
    assert count_cores([3, 5]) is None


def test_one_is_no_pair() -> None:
    with pytest.raises(ValueError, match="one CPU is no pair"):
        choose_pair([0])
