"""What the demo shows, step by step. Each step says what it showed, or raises NotAsClaimed."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cpp_ring import LatencyRecorder
from emulator.bench.rows import human
from emulator.demo import image
from emulator.demo.image import MIB, Image
from emulator.demo.stage import DOMAINS, Stage

Progress = Callable[[float], None]
"""Gets the share that is done, 0 to 1."""

SECTOR: Final = 512
READ_SECTORS: Final = MIB // SECTOR
PATTERN_BYTES: Final = 4 * MIB
FRAMES: Final = 256
BURST: Final = 8
"""Frames under way in one direction: fewer than the datagrams that a socket holds on any machine, so none is lost."""
ETHERTYPE: Final = b"\x88\xb5"  # IEEE 802, for local experiments
WRITEBACK_OFFSET: Final = 32  # in struct virtio_blk_config: the byte a driver may write
EXCHANGE_SECONDS: Final = 10.0
"""A guest waits this long for an answer: no emulator dies here unnoticed, but machines that are shared stand still."""
RACE_SLICE: Final = 5_000
GROWTH: Final = 32 * MIB
LATENCY_COUNT: Final = 100_000
LATENCY_SLICE_SECONDS: Final = 0.05
LATENCY_SECONDS: Final = 3.0
PATIENCE: Final = 10.0

MODELS: Final = {1: "net", 2: "blk", 4: "rng"}


class NotAsClaimed(Exception):
    """Something that virtio-dm promises was not so."""


def claim(holds: bool, otherwise: str) -> None:
    """Raises NotAsClaimed(otherwise) unless it holds."""
    if not holds:
        raise NotAsClaimed(otherwise)


class Demo:
    """The steps, and what later ones need of earlier ones."""

    def __init__(self, stage: Stage, mke2fs: Path, say: Callable[[str], None], races: int) -> None:
        """`say` shows a line to whoever watches. `races`: writes that are read back at once."""
        self._stage = stage
        self._mke2fs = mke2fs
        self._say = say
        self._races = races
        self._image = Image(Path(), Path(), 0)
        self._numbers: dict[tuple[int, str], int] = {}
        self._found: dict[tuple[int, str], dict[str, Any]] = {}
        self.latency = LatencyRecorder()

    def make_image(self, progress: Progress) -> str:
        self._image = image.make(self._mke2fs, self._stage.directory, progress)
        size = image.FILE_SYSTEM_BYTES // MIB
        return f"{size} MiB of ext4 from {self._image.files} files of {self._image.source}"

    def start(self, progress: Progress) -> str:
        stage = self._stage
        stage.start_machine()
        progress(0.2)
        supervisor = stage.start_supervisor()
        progress(0.4)
        cable = [stage.directory / f"net{domid}" for domid in DOMAINS]
        self._attach(1, "blk", path=self._image.path, serial="virtio-dm-demo")
        self._attach(1, "net", socket=cable[0], peer=cable[1])
        self._attach(1, "rng")
        progress(0.8)
        self._attach(2, "net", socket=cable[1], peer=cable[0])
        self._attach(2, "rng")
        emulators = {stage.emulator_pid(domid) for domid in DOMAINS}
        claim(len(emulators) == len(DOMAINS), "two domains share an emulator")
        return f"supervisor {supervisor} runs emulators {' and '.join(map(str, sorted(emulators)))}, one a domain"

    def probe(self, progress: Progress) -> str:
        for domid in DOMAINS:
            self._stage.start_guest(domid)
        for done, ((domid, model), number) in enumerate(self._numbers.items()):
            found = self._found[domid, model] = self._ask(
                domid, "connect", dev=number, exchange_timeout=EXCHANGE_SECONDS
            )
            device_id = found["device_id"]
            claim(MODELS.get(device_id) == model, f"domain {domid} device {number}: id {device_id} is no {model}")
            self._say(f"domain {domid}  device {number}  virtio-{model}  {_describe(found)}")
            progress((done + 1) / len(self._numbers))
        self._pin()
        return f"{len(self._found)} devices initialised by {len(DOMAINS)} guest processes, reset to DRIVER_OK"

    def read_back(self, progress: Progress) -> str:
        capacity = self._found[1, "blk"]["capacity"]
        digest = hashlib.sha256()
        for sector in range(0, capacity, READ_SECTORS):
            digest.update(self._read(sector, min(READ_SECTORS, capacity - sector)))
            progress((sector + READ_SECTORS) / capacity)
        with self._image.path.open("rb") as file:
            expected = hashlib.file_digest(file, "sha256").hexdigest()
        claim(digest.hexdigest() == expected, f"SHA-256 {digest.hexdigest()} in the guest, {expected} in the file")
        return f"{capacity * SECTOR // MIB} MiB through the ring, SHA-256 {expected[:12]}... as in the file"

    def restart(self, progress: Progress) -> str:
        pattern = os.urandom(PATTERN_BYTES)
        start, count = image.FILE_SYSTEM_BYTES // SECTOR, PATTERN_BYTES // SECTOR
        blk = self._numbers[1, "blk"]
        self._ask(1, "blk_write", dev=blk, sector=start, data=base64.b64encode(pattern).decode())
        self._ask(1, "blk_flush", dev=blk)
        progress(0.3)
        before = {domid: self._stage.emulator_pid(domid) for domid in DOMAINS}
        killed = time.monotonic()
        os.kill(before[1], signal.SIGKILL)
        first = self._read(start, 1)
        answered = time.monotonic() - killed
        progress(0.8)
        claim(first + self._read(start + 1, count - 1) == pattern, "what was written and flushed is not on the disk")
        self._ask(1, "config_read", dev=self._numbers[1, "net"], offset=0, size=6)
        self._ask(1, "rng", dev=self._numbers[1, "rng"], size=16)
        after = {domid: self._stage.emulator_pid(domid) for domid in DOMAINS}
        claim(after[1] != before[1], f"domain 1 is still served by process {before[1]}, which was killed")
        claim(after[2] == before[2], "the emulator of domain 2 was restarted too")
        self._pin()
        return (
            f"{PATTERN_BYTES // MIB} MiB written and flushed, {before[1]} killed, {after[1]} started; "
            f"{answered * 1000:.0f} ms from the kill to the guest's next answer"
        )

    def frames(self, progress: Progress) -> str:
        outgoing = {source: self._frames_from(source) for source in DOMAINS}
        for first in range(0, FRAMES, BURST):
            for source in DOMAINS:
                for frame in outgoing[source][first : first + BURST]:
                    self._ask(source, "net_send", dev=self._numbers[source, "net"], frame=frame.hex())
            for source in DOMAINS:
                target = _other(source)
                for number, frame in enumerate(outgoing[source][first : first + BURST], first):
                    nic = self._numbers[target, "net"]
                    arrived = self._ask(target, "net_receive", dev=nic, timeout=PATIENCE)["frame"]
                    claim(arrived is not None, f"frame {number} from domain {source} did not arrive")
                    claim(arrived == frame.hex(), f"frame {number} from domain {source} arrived changed")
            progress((first + BURST) / FRAMES)
        total = sum(len(frame) for frames in outgoing.values() for frame in frames)
        return f"{FRAMES} frames each way, {total // 1024} KiB of virtio-rng bytes, all as sent"

    def race(self, progress: Progress) -> str:
        stale = 0
        for done in range(0, self._races, RACE_SLICE):
            count = min(RACE_SLICE, self._races - done)
            answer = self._ask(
                1,
                "config_race",
                dev=self._numbers[1, "blk"],
                offset=WRITEBACK_OFFSET,
                values=["00", "01"],
                count=count,
            )
            stale += answer["stale"]
            progress((done + count) / self._races)
        claim(stale == 0, f"{stale} of {self._races:,} reads gave what was there before the write")
        return f"{self._races:,} writes, each read back at once: no stale value"

    def resize(self, progress: Progress) -> str:
        blk = self._numbers[1, "blk"]
        before = self._found[1, "blk"]["capacity"]
        size = before * SECTOR + GROWTH
        self._ask(1, "wait_config_change", dev=blk, timeout=0)  # what the guest wrote itself counts as a change
        update = self._stage.start_update(1, blk, size=size)
        noticed = self._ask(1, "wait_config_change", dev=blk, timeout=PATIENCE)
        code = update.wait(PATIENCE)
        claim(code == 0, f"`virtio-dm update` ended with exit code {code}")
        claim(noticed["changed"], "the guest was not told that its disk has changed")
        claim(noticed["capacity"] * SECTOR == size, f"the guest sees {noticed['capacity'] * SECTOR} bytes, not {size}")
        progress(0.9)
        claim(not any(self._read(size // SECTOR - 1, 1)), "the new end of the disk is not empty")
        return f"{before * SECTOR // MIB} to {size // MIB} MiB in use: config change seen, new end read"

    def measure(self, progress: Progress) -> str:
        deadline = time.monotonic() + LATENCY_SECONDS
        count = 100
        while self.latency.count < LATENCY_COUNT and (now := time.monotonic()) < deadline:
            measured = self._stage.guests[1].measure(
                "measure_config_get", dev=self._numbers[1, "blk"], offset=0, size=8, count=count
            )
            self.latency.merge(measured)
            progress(self.latency.count / LATENCY_COUNT)
            if time.monotonic() - now < LATENCY_SLICE_SECONDS:  # on a machine of one core the slices stay short
                count = min(2 * count, LATENCY_COUNT - self.latency.count)
        p50, p99 = (human(self.latency.percentile(percent), "ns") for percent in (50, 99))
        return f"the capacity read {self.latency.count:,} times: p50 {p50}, p99 {p99}"

    def stop(self, progress: Progress) -> str:
        emulators = [self._stage.emulator_pid(domid) for domid in DOMAINS]
        self._stage.close()
        left = [pid for pid in emulators if Path(f"/proc/{pid}").exists()]
        claim(not left, f"emulators {left} still run")
        claim(not self._stage.directory.exists(), f"{self._stage.directory} is still there")
        return "guests, emulators, supervisor and machine ended, no file left"

    def _attach(self, domid: int, model: str, **options: object) -> None:
        self._numbers[domid, model] = self._stage.attach(domid, model, **options)

    def _ask(self, domid: int, op: str, **parameters: Any) -> dict[str, Any]:
        return self._stage.guests[domid].request(op, **parameters)

    def _read(self, sector: int, count: int) -> bytes:
        answer = self._ask(1, "blk_read", dev=self._numbers[1, "blk"], sector=sector, count=count)
        return base64.b64decode(answer["data"])

    def _frames_from(self, domid: int) -> list[bytes]:
        """Of every length that Ethernet has, their content from the entropy device of the domain."""
        header = bytes.fromhex(
            (self._found[_other(domid), "net"]["mac"] + self._found[domid, "net"]["mac"]).replace(":", "")
        )
        lengths = [46 + (1500 - 46) * number // (FRAMES - 1) for number in range(FRAMES)]
        content = bytes.fromhex(self._ask(domid, "rng", dev=self._numbers[domid, "rng"], size=sum(lengths))["data"])
        claim(len(set(content)) == 256, "the entropy device gave bytes that are not random")
        frames = []
        for length in lengths:
            frames.append(header + ETHERTYPE + content[:length])
            content = content[length:]
        return frames

    def _pin(self) -> None:
        """Domain 1 and its emulator to different cores, if there are two: where one spins the other must not wait."""
        cpus = sorted(os.sched_getaffinity(0))
        self._ask(1, "pin", cpu=cpus[0])
        for thread in Path(f"/proc/{self._stage.emulator_pid(1)}/task").iterdir():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread.name), {cpus[-1]})


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the demo. `run` returns what it showed."""

    name: str
    title: str
    run: Callable[[Demo, Progress], str]


STEPS: Final = (
    Step("image", "Make an ext4 image of real files", Demo.make_image),
    Step("start", "Start a machine, a supervisor and two emulators", Demo.start),
    Step("probe", "Initialise the devices as Linux does", Demo.probe),
    Step("read", "Read the whole disk, compare with the file", Demo.read_back),
    Step("restart", "Write, flush, kill -9 the emulator, read back", Demo.restart),
    Step("frames", "Exchange frames between the two domains", Demo.frames),
    Step("race", "Write config and read it at once", Demo.race),
    Step("resize", "Resize the disk while it is in use", Demo.resize),
    Step("latency", "Time round trips of config reads", Demo.measure),
    Step("stop", "Stop everything, leave nothing behind", Demo.stop),
)


def _other(domid: int) -> int:
    return DOMAINS[1 - DOMAINS.index(domid)]


def _describe(found: dict[str, Any]) -> str:
    queues = "+".join(map(str, found["queues"]))
    return f"id {found['device_id']}  {len(found['features']):>2} features  queues of {queues}"
