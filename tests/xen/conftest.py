"""Tests that run in the rig's dom0: scripts/xen-rig test. Elsewhere they are left out, and the summary says so."""

from pathlib import Path

import pytest

IN_DOM0 = Path("/proc/xen/capabilities").exists() and "control_d" in Path("/proc/xen/capabilities").read_text()
collect_ignore_glob = [] if IN_DOM0 else ["test_*.py"]

if IN_DOM0:
    # Here and nowhere else: a fixture that is imported into a module is another one, with a domU of its own.
    from tests.xen.serving import dom0, domu, driver, guest, image, machine, other, supervisor

    __all__ = ["dom0", "domu", "driver", "guest", "image", "machine", "other", "supervisor"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "last: leaves `domu` another domain or none, so it comes after all others of it")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Before pytest itself puts those of one kind of domU together, which keeps their order.
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cycles", type=int, default=5, help="how often tests on Xen kill, plug, load (default: 5)")


@pytest.fixture(scope="session")
def cycles(request: pytest.FixtureRequest) -> int:
    number: int = request.config.getoption("--cycles")
    return number


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not IN_DOM0:
        terminalreporter.section("NOT TESTED: tests/xen needs a dom0: scripts/xen-rig test", yellow=True, bold=True)
