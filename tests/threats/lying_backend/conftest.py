"""A backend that lies, and the driver that meets it (threat 30): no call of a driver may outlast its deadline."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest.hypervisor import Domain
from guest.transport import Transport
from tests.raw_backend import RawBackend
from tests.scripted_device import ScriptedDevice

LATE = 20.0
"""Seconds after which a call that should have ended long before counts as hung."""


@pytest.fixture(autouse=True)
def never_hangs() -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < LATE


@pytest.fixture
def backend(directory: Path) -> Iterator[RawBackend]:
    """An honest one, attached and running; each test gives it its lie."""
    with RawBackend(directory, ScriptedDevice(config=bytes(range(64)))) as raw:
        raw.attach()
        yield raw


@pytest.fixture
def transport(domain: Domain, backend: RawBackend) -> Iterator[Transport]:
    connected = Transport(domain, 0, timeout=1.0)
    connected.connect(5.0)
    yield connected
    connected.close()
