"""Local machines to test with: a broker in a thread, and one in a process of its own."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from emulator import local
from emulator.local.broker import Broker


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory for machines, whose brokers end with the test; short, since a socket's path holds 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="vdm-"))
    monkeypatch.setenv("VIRTIO_DM_RUNTIME_DIR", str(path))
    yield path
    for directory in path.iterdir():
        with contextlib.suppress(local.MachineError), local.Control(directory) as control:
            control.stop()
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def machine(runtime: Path) -> Iterator[Path]:
    """The directory of a machine with domains 0 to 3, served by a thread of this process."""
    broker = Broker(runtime / "m", range(1, 4))
    thread = threading.Thread(target=broker.run)
    thread.start()
    yield runtime / "m"
    broker.stop()
    thread.join()


@pytest.fixture
def process_machine(runtime: Path) -> Path:
    """The directory of machine "p", whose broker is a process, as commands start it."""
    return local.ensure_broker("p")
