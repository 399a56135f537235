"""What a storm of events on one device costs a neighbour in the same process (threat 22), for SECURITY.md.

    .venv/bin/python -P tests/threats/neighbour_in_a_storm.py

Prints p50 and p99 of reads of 64 bytes, in calm and in a storm in turn. Nobody judges them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

from cpp_ring import LatencyRecorder, clock_ns
from cpp_ring.store import Store
from emulator import local
from emulator.local import Control
from emulator.store_paths import State, backend_dir
from guest.hypervisor import open_local
from guest.rng import RngDevice

TURNS: Final = 4
READS: Final = 3000
EVENTS: Final = 10_000
PATIENCE: Final = 10.0


def read(rng: RngDevice) -> LatencyRecorder:
    recorder = LatencyRecorder()
    for _ in range(READS):
        start = clock_ns()
        rng.read(64)
        recorder.record(clock_ns() - start)
    return recorder


def await_devices(directory: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    with Store.open(directory / "dom0" / "xenstored") as store:
        while store.read_optional(f"{backend_dir(0, 1, 1)}/state") != str(int(State.INIT_WAIT)):
            assert time.monotonic() < deadline, "the emulator does not serve"
            time.sleep(0.05)  # nothing is measured yet


def compare(directory: Path) -> None:
    domain = open_local(directory, 1)
    stormy, ended = threading.Event(), threading.Event()
    with RngDevice(domain, 0) as attacked, RngDevice(domain, 1) as neighbour:

        def storm() -> None:
            with Control(directory) as control:
                while not ended.is_set():
                    if stormy.wait(0.01):
                        control.storm(1, attacked.transport.frontend.event_channel, EVENTS)

        sender = threading.Thread(target=storm)
        sender.start()
        try:
            for turn in range(2 * TURNS):
                (stormy.set if turn % 2 else stormy.clear)()
                time.sleep(0.2)  # until it has begun, or ebbed away
                p50, p99 = (recorded / 1000 for recorded in map(read(neighbour).percentile, (50, 99)))
                print(f"{'storm' if turn % 2 else 'calm':5}  p50 {p50:4.0f} us  p99 {p99:4.0f} us")
        finally:
            ended.set()
            sender.join()


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="vdm-") as base:
        os.environ["VIRTIO_DM_RUNTIME_DIR"] = base
        directory = local.ensure_broker("storm")
        command = [sys.executable, "-P", "-m", "emulator", "run", "--hypervisor", "local:storm", "--domid", "1"]
        emulator = subprocess.Popen([*command, "--device", "rng", "--device", "rng"], stderr=subprocess.DEVNULL)
        try:
            await_devices(directory)
            compare(directory)
        finally:
            emulator.terminate()
            emulator.wait(PATIENCE)
            local.stop("storm")


if __name__ == "__main__":
    main()
