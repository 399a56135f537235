"""Random bytes come in the number that was asked for, across requests and restarts."""

from __future__ import annotations

from pathlib import Path

from guest.device import DRIVER_OK
from guest.hypervisor import Domain
from guest.rng import RngDevice
from tests.guest.conftest import StartEmulator
from tests.raw_backend import RawBackend
from tests.raw_queue import RawQueue
from tests.scripted_device import ScriptedDevice


def test_any_number_of_bytes_is_read(domain: Domain, emulator: StartEmulator) -> None:
    emulator("rng")
    with RngDevice(domain, 0) as rng:
        assert [len(rng.read(size)) for size in (0, 1, 16, 4096, 4097, 100_000)] == [0, 1, 16, 4096, 4097, 100_000]
        assert rng.read(32) != rng.read(32)


def test_a_read_survives_kill_9(domain: Domain, emulator: StartEmulator) -> None:
    process = emulator("rng")
    with RngDevice(domain, 0) as rng:
        assert len(rng.read(16)) == 16
        process.kill()
        emulator("rng")
        assert len(rng.read(5000)) == 5000


def test_a_device_that_gives_less_than_asked_is_asked_again(domain: Domain, directory: Path) -> None:
    class Sparing(RawBackend):
        queue: RawQueue | None = None
        sizes: list[int] = []  # noqa: RUF012

        def idle(self) -> None:
            if self.device.status & DRIVER_OK:
                self.queue = self.queue or RawQueue(self, 0)
                for head in self.queue.available():
                    address, size, _ = self.queue.chain(head)[0]
                    self.sizes.append(size)
                    given = min(size, 7)
                    self.queue.payload(address, given)[:] = (b"%07d" % len(self.sizes))[:given]
                    self.queue.use(head, given)

    with Sparing(directory, ScriptedDevice()) as backend:
        backend.attach()
        with RngDevice(domain, 0) as rng:
            assert rng.read(16) == b"000000100000020000003"[:16]
    assert backend.sizes == [16, 9, 2]
