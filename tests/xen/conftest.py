"""Tests that run in the rig's dom0: scripts/xen-rig test. Elsewhere they are left out, and the summary says so."""

from collections.abc import Generator
from pathlib import Path

import pluggy
import pytest

from scripts.xen_rig.parts import CPUS

IN_DOM0 = Path("/proc/xen/capabilities").exists() and "control_d" in Path("/proc/xen/capabilities").read_text()
collect_ignore_glob = [] if IN_DOM0 else ["test_*.py"]

if IN_DOM0:
    # Here and nowhere else: a fixture that is imported into a module is another one, with a domU of its own.
    from tests.xen.domu import domu_consoles, last_lines, xen_log
    from tests.xen.serving import dom0, domu, driver, guest, image, machine, other, supervisor

    __all__ = ["dom0", "domu", "driver", "guest", "image", "machine", "other", "supervisor"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "last: leaves `domu` another domain or none, so it comes after all others of it")
    config.addinivalue_line("markers", "part(name): the rig's machine for it, if its domU's kind does not say so")


def part(item: pytest.Item) -> str:
    """Which of the rig's machines it runs in, see scripts/xen_rig/parts.py."""
    if marker := item.get_closest_marker("part"):
        name: str = marker.args[0]
        assert name in CPUS, f"{item.nodeid}: no part {name!r}"
        return name
    parameters = list(item.callspec.params.values()) if hasattr(item, "callspec") else []
    return "pv" if "pv" in parameters else "pvh"


def has_tests_for_two_cpus(module: Path) -> bool:
    text = module.read_text()
    return "TWO_CPUS" in text or '"two-cpus"' in text


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    # In emulation, to read all modules for the few tests of that machine takes longer than most tests.
    if config.getoption("--part") == "two-cpus" and collection_path.name.startswith("test_"):
        return None if has_tests_for_two_cpus(collection_path) else True
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Before pytest itself puts those of one kind of domU together, which keeps their order.
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)
    for item in items:
        assert part(item) != "two-cpus" or has_tests_for_two_cpus(item.path), f"{item.nodeid} would run nowhere"
    if wanted := config.getoption("--part"):
        left_out = [item for item in items if part(item) != wanted]
        items[:] = [item for item in items if part(item) == wanted]
        config.hook.pytest_deselected(items=left_out)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", default=None, help="only tests for this machine of the rig")
    parser.addoption("--cycles", type=int, default=3, help="how often tests on Xen kill, plug, load (default: 3)")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Generator[None, pluggy.Result[pytest.TestReport], None]:
    outcome = yield
    report = outcome.get_result()
    if report.failed and IN_DOM0:  # a domU may be dead, and why is in nothing that the test has
        report.sections += [("Xen's log", last_lines(xen_log())), *domu_consoles()]


@pytest.fixture(scope="session")
def cycles(request: pytest.FixtureRequest) -> int:
    number: int = request.config.getoption("--cycles")
    return number


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not IN_DOM0:
        terminalreporter.section("NOT TESTED: tests/xen needs a dom0: scripts/xen-rig test", yellow=True, bold=True)
