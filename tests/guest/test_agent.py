"""A guest in a process of its own does what it is told, answers every line with one line, and ends in order."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cpp_ring import LatencyRecorder
from cpp_ring.store import Store
from emulator.local import ensure_broker
from emulator.local.control import Control
from guest.agent import Agent, wait_readable
from guest.hypervisor import Domain
from tests.guest.conftest import PATIENCE, Emulator, StartEmulator
from tests.raw_backend import local_machine


class AgentProcess:
    """`python -m guest agent` of a domain."""

    def __init__(self, domid: int = 1) -> None:
        command = [sys.executable, "-m", "guest", "--hypervisor", "local:m", "--domid", str(domid), "agent"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def send(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def ask(self, op: str, **keys: Any) -> dict[str, Any]:
        self.send(json.dumps({"op": op, **keys}).encode() + b"\n")
        return self.answer()

    def do(self, op: str, **keys: Any) -> dict[str, Any]:
        answer = self.ask(op, **keys)
        assert answer["ok"], answer
        return answer

    def end(self) -> int:
        """Closes its input; its exit code."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        code = self.process.wait(PATIENCE)
        self.process.stdout.close()
        return code


@pytest.fixture
def agent(directory: Path) -> Iterator[AgentProcess]:
    process = AgentProcess()
    yield process
    if process.process.poll() is None:
        assert process.end() == 0


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(1).randbytes(4 << 20))
    return path


def test_connections_that_come_and_go_leave_nothing_held(agent: AgentProcess, emulator: StartEmulator) -> None:
    emulator("rng")
    before = agent.do("held")
    for _ in range(3):
        agent.do("connect", dev=0)
        there = agent.do("held")
        agent.do("close", dev=0)
    assert all(there[what] > before[what] for what in ("descriptors", "shared")), (before, there)
    assert agent.do("held") == before


def test_a_disk_is_driven_over_a_pipe(
    agent: AgentProcess, emulator: StartEmulator, image: Path, tmp_path: Path
) -> None:
    emulator("rng", f"blk,path={image},serial=s-1")
    assert [entry["dev"] for entry in agent.do("list")["devices"]] == [0, 1]
    disk = agent.do("connect", dev=1)
    assert (disk["device_id"], disk["capacity"], disk["read_only"]) == (2, 8192, False)
    assert agent.do("blk_sha256", dev=1)["sha256"] == hashlib.sha256(image.read_bytes()).hexdigest()
    data = bytes(range(256)) * 8
    assert agent.do("blk_write", dev=1, sector=8, data=base64.b64encode(data).decode())["size"] == 2048
    (tmp_path / "in").write_bytes(data[::-1])
    agent.do("blk_write", dev=1, sector=16, file=str(tmp_path / "in"))
    agent.do("blk_flush", dev=1)
    assert base64.b64decode(agent.do("blk_read", dev=1, sector=8, count=4)["data"]) == data
    assert image.read_bytes()[16 * 512 : 20 * 512] == data[::-1]
    assert agent.do("blk_id", dev=1)["text"] == "s-1"
    agent.do("blk_write_zeroes", dev=1, sector=0, count=8)
    agent.do("blk_discard", dev=1, sector=0, count=8)
    agent.do("blk_writeback", dev=1, on=False)
    assert agent.do("config_read", dev=1, offset=0, size=8)["data"] == "0020000000000000"
    assert agent.do("status", dev=1) == {"ok": True, "status": 15, "needs_reset": False, "error": 0, "detail": 0}
    assert agent.do("probe", dev=1)["capacity"] == 8192
    assert len(bytes.fromhex((agent.do("connect", dev=0), agent.do("rng", dev=0, size=20))[1]["data"])) == 20
    agent.do("close", dev=1)
    assert agent.ask("status", dev=1)["kind"] == "NoSuchDevice"


def test_what_is_written_to_config_space_is_read_at_once(
    agent: AgentProcess, emulator: StartEmulator, image: Path
) -> None:
    emulator(f"blk,path={image}")
    agent.do("connect", dev=0)
    answer = agent.do("config_race", dev=0, offset=32, values=["00", "01"], count=2000)
    assert answer == {"ok": True, "count": 2000, "stale": 0}
    assert agent.do("config_write", dev=0, offset=32, data="00")["data"] == "00"


def test_measurements_come_back_as_recorders(agent: AgentProcess, emulator: StartEmulator, image: Path) -> None:
    emulator("rng", f"blk,path={image}")
    for dev in (0, 1):
        agent.do("connect", dev=dev)
    agent.do("pin", cpu=min(os.sched_getaffinity(0)))
    measurements: dict[str, dict[str, Any]] = {
        "measure_config_get": {"offset": 0, "size": 8, "count": 20},
        "measure_config_set": {"offset": 32, "data": "01", "count": 20},
        "measure_blk_read": {"count": 20},
        "measure_probe": {"count": 5},
    }
    for op, keys in measurements.items():
        answer = agent.do(op, dev=1, **keys)
        assert LatencyRecorder.from_bytes(base64.b64decode(answer["recorder"])).count == keys["count"]
    assert agent.do("measure_config_get", dev=1, offset=0, size=4, count=3, idle=True)["count"] == 3
    assert agent.do("measure_rng", dev=0, count=20)["count"] == 20
    assert agent.do("blk_sha256", dev=1, count=8)["size"] == 4096


def test_frames_are_sent_and_received(emulator: StartEmulator, directory: Path, tmp_path: Path) -> None:
    ends = (tmp_path / "1", tmp_path / "2")
    agents = [AgentProcess(1), AgentProcess(2)]
    for i, process in enumerate(agents):
        emulator(f"net,socket={ends[i]},peer={ends[1 - i]},mac=02:00:00:00:00:0{i + 1}", domid=i + 1)
        assert process.do("connect", dev=0)["mac"] == f"02:00:00:00:00:0{i + 1}"
    one, two = agents
    sent = "020000000002020000000001" + "88b5" + "ab" * 50
    one.do("net_send", dev=0, frame=sent)
    one.do("net_flush", dev=0)
    assert two.do("net_receive", dev=0, timeout=10)["frame"] == sent
    assert two.do("net_receive", dev=0, timeout=0)["frame"] is None
    two.do("net_rx_mode", dev=0, mode="promisc", on=True)
    two.do("net_mac", dev=0, mac="02:00:00:00:00:09")
    two.do("net_mac_table", dev=0, unicast=["02:00:00:00:00:08"], multicast=[])
    two.do("net_vlan", dev=0, vlan=5, on=True)
    two.do("net_vlan", dev=0, vlan=5, on=False)
    two.do("net_announced", dev=0)
    assert two.ask("net_pairs", dev=0, pairs=2)["kind"] == "Unsupported"
    for process in agents:
        assert process.end() == 0


def test_an_idle_agent_follows_an_unplug_and_a_restart(
    agent: AgentProcess, emulator: StartEmulator, image: Path, toolstack: Callable[..., None]
) -> None:
    spec = f"blk,path={image}"
    process = emulator(spec)
    agent.do("connect", dev=0)
    process.kill()
    emulator(spec)
    assert agent.do("wait_config_change", dev=0, timeout=20)["changed"]
    toolstack("detach", "1", "0")  # returns once the agent has let go
    assert agent.do("wait_gone", dev=0, timeout=20)["gone"]
    assert agent.ask("blk_flush", dev=0)["kind"] == "DeviceGone"


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b"{", "JSONDecodeError"),
        (b"[]", "ValueError"),
        (b"{}", "ValueError"),
        (b'{"op": "fly"}', "ValueError"),
        (b'{"op": null}', "ValueError"),
        (b'{"op": "connect"}', "TypeError"),
        (b'{"op": "connect", "dev": 99}', "NoSuchDevice"),
        (b'{"op": "list", "dev": 0}', "TypeError"),
        (b'{"op": "config_read", "dev": 0, "offset": 0, "size": 1}', "NoSuchDevice"),
        (b'{"op": "\xff"}', "UnicodeDecodeError"),
    ],
)
def test_a_command_that_makes_no_sense_is_answered(domain: Domain, line: bytes, kind: str) -> None:
    answer = Agent(domain).execute(line)
    assert not answer["ok"]
    assert answer["kind"] == kind
    assert answer["error"]


def test_lines_are_answered_one_by_one_however_they_arrive(agent: AgentProcess) -> None:
    agent.send(b'{"op": "list", "id": 1}\n\n{"op": "list", "id": [2]}\n{"op": "li')
    assert [agent.answer()["id"] for _ in range(2)] == [1, [2]]
    agent.send(b'st", "id": "three"}\n')
    assert agent.answer() == {"ok": True, "devices": [], "id": "three"}


def test_an_agent_without_a_machine_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRTIO_DM_RUNTIME_DIR", str(tmp_path))
    command = [sys.executable, "-m", "guest", "--domid", "1", "agent"]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False)
    assert result.returncode == 3
    assert result.stderr.count(b"\n") == 1


def test_an_agent_outlives_the_store_and_says_how_it_ended() -> None:
    with local_machine() as machine, contextlib.ExitStack() as ending:
        ending.callback(ensure_broker, "m")  # to be stopped
        emulator = Emulator(1, ("rng",))
        ending.callback(emulator.stop)
        agent = AgentProcess()
        ending.callback(agent.end)
        with Store.open(machine / "dom0" / "xenstored") as dom0, Control(machine) as control:
            emulator.await_devices(dom0)
            agent.do("connect", dev=0)
            broker = os.pidfd_open(control.pid)
        signal.pidfd_send_signal(broker, signal.SIGKILL)
        assert wait_readable([broker], PATIENCE), "the broker did not die"
        os.close(broker)
        for _ in range(2):
            answer = agent.ask("probe", dev=0)
            assert (answer["ok"], answer["kind"]) == (False, "StoreError"), answer
            assert "the store" in answer["error"], answer
        assert agent.end() == 0


def test_ctrl_c_ends_an_agent_quietly_and_closes_its_devices(
    agent: AgentProcess, emulator: StartEmulator, domain: Domain
) -> None:
    emulator("rng")
    agent.do("connect", dev=0)
    agent.process.send_signal(signal.SIGINT)
    assert agent.process.wait(PATIENCE) == 130
    with domain.open_store() as store:
        assert store.read("device/virtio-msg/0/state") == "6"
    assert agent.process.stdin is not None
    assert agent.process.stdout is not None
    agent.process.stdin.close()
    agent.process.stdout.close()
