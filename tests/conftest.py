"""What all tests share: how hypothesis runs, and that tests which need root never vanish silently."""

import os
import signal
import sys
from collections.abc import Generator

import pytest
from hypothesis import settings

# Processes that tests start import what this process imports, whatever directory they run in.
os.environ["PYTHONSAFEPATH"] = "1"

# As virtio-dm has it, see emulator/__main__.py; here numpy is imported before that.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# A shell without job control ignores Ctrl-C for what it starts in the background, nohup a hang-up; both are inherited.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The same examples at every run and no time limit: a red run is a fault of the code, not of the day or the machine.
settings.register_profile("virtio-dm", derandomize=True, deadline=None)
settings.load_profile("virtio-dm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The longest files first, so that at the end no process of xdist has one to itself while the others wait.
    items.sort(key=lambda item: "threats" not in item.path.parts)
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    if not pyfuncitem.get_closest_marker("many"):
        return (yield)
    counting = sys.gettrace()
    sys.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(counting)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [report for report in terminalreporter.getreports("skipped") if "root" in report.keywords]
    if skipped:
        terminalreporter.section("NOT TESTED: these need root", yellow=True, bold=True)
        for report in skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
            terminalreporter.line(f"{report.nodeid}: {reason}", yellow=True)
