"""`python -m guest`: output a person can use, one clear line and an exit code for everything that goes wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from guest.__main__ import FAILED, NO_HYPERVISOR, USAGE, main
from tests.guest.conftest import PATIENCE, StartEmulator

LOCAL = ["--hypervisor", "local:m", "--domid", "1", "--timeout", "10"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 256)
    return path


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "guest", *LOCAL, *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=PATIENCE, check=False)


def test_devices_are_listed_and_probed(
    directory: Path, emulator: StartEmulator, image: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ends = f"socket={tmp_path / 'a'},peer={tmp_path / 'b'}", f"socket={tmp_path / 'c'},peer={tmp_path / 'd'}"
    fast = f"net,{ends[1]},speed=10000,duplex=half"
    emulator("rng", f"blk,path={image},serial=s-1", f"net,{ends[0]}", fast)
    assert main([*LOCAL, "probe", "1"]) == 0
    out = capsys.readouterr().out
    assert "device_id: 2\n" in out
    assert "config.capacity: 128\n" in out
    assert "vendor_id: 0x5853\n" in out
    assert "queues: 1, of size 128\n" in out
    assert main([*LOCAL, "probe", "2"]) == 0
    out = capsys.readouterr().out
    assert "queues: 3, of size 128, 128, 64\n" in out
    assert "speed: unknown\n" in out
    assert main([*LOCAL, "blk", "info", "1"]) == 0
    assert capsys.readouterr().out.startswith("id: s-1\nsize: 65536\nread only: False\n")
    assert main([*LOCAL, "config", "1", "0", "20"]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("0000  80 00 00 00 00 00 00 00")
    assert main([*LOCAL, "config", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert main([*LOCAL, "rng", "0", "20"]) == 0
    assert len(bytes.fromhex(capsys.readouterr().out)) == 20
    assert main([*LOCAL, "net", "info", "2"]) == 0
    assert "mtu: 1500\n" in capsys.readouterr().out
    assert main([*LOCAL, "net", "info", "3"]) == 0
    assert "speed: 10000 Mbit/s, half duplex\n" in capsys.readouterr().out
    assert main([*LOCAL, "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[:3] for line in lines] == [
        ["0", "device id 4", "rng"],
        ["1", "device id 2", "blk"],
        ["2", "device id 1", "net"],
        ["3", "device id 1", "net"],
    ]
    assert main([*LOCAL, "net", "send", "2", "ff" * 60]) == 0
    assert main(["--timeout", "1", *LOCAL[:4], "net", "receive", "2"]) == FAILED
    assert "no frame came" in capsys.readouterr().err
    assert main([*LOCAL, "blk", "info", "0"]) == FAILED
    assert "device id 4, not 2" in capsys.readouterr().err


def test_a_disk_is_written_and_read_through_pipes_and_files(
    directory: Path, emulator: StartEmulator, image: Path, tmp_path: Path
) -> None:
    emulator(f"blk,path={image}")
    before = image.read_bytes()
    assert run("blk", "read", "0").stdout == before
    assert run("blk", "write", "0", "2", stdin=b"w" * 1024).returncode == 0
    assert run("blk", "read", "0", "2", "2").stdout == b"w" * 1024
    assert image.read_bytes() == before[:1024] + b"w" * 1024 + before[2048:]
    (tmp_path / "in").write_bytes(b"f" * 512)
    assert main([*LOCAL, "blk", "write", "0", "--file", str(tmp_path / "in")]) == 0
    assert main([*LOCAL, "blk", "flush", "0"]) == 0
    assert main([*LOCAL, "blk", "discard", "0", "8", "8"]) == 0
    assert main([*LOCAL, "blk", "read", "0", "0", "1", "--file", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out").read_bytes() == b"f" * 512
    refused = run("blk", "write", "0", "128", stdin=bytes(512))
    assert (refused.returncode, refused.stderr) == (FAILED, b"guest: OUT at sector 128: I/O error of the device\n")
    odd = run("blk", "write", "0", stdin=bytes(100))
    assert odd.returncode == USAGE


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ([*LOCAL, "probe", "5"], FAILED, "no device 5"),
        (["--hypervisor", "xen", "--domid", "1", "list"], NO_HYPERVISOR, "no Xen here"),
        (["--hypervisor", "local", "list"], USAGE, "--domid N"),
        (["--hypervisor", "kvm", "--domid", "1", "list"], USAGE, "unknown hypervisor 'kvm'"),
        (["--hypervisor", "local:../m", "--domid", "1", "list"], USAGE, "machine name"),
        (["--hypervisor", "local:m", "--domid", "40000", "list"], USAGE, "40000"),
        (["--hypervisor", "local:m", "--domid", "31", "list"], NO_HYPERVISOR, ""),
        (["--hypervisor", "local:none", "--domid", "1", "list"], NO_HYPERVISOR, ""),
        ([*LOCAL, "blk", "read", "0", "--file", "/no/such/place"], FAILED, "no device 0"),
    ],
)
def test_what_goes_wrong_is_one_line_and_an_exit_code(
    directory: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, text: str
) -> None:
    assert main(arguments) == code
    err = capsys.readouterr().err
    assert err.startswith("guest: ")
    assert err.count("\n") == 1
    assert text in err


@pytest.mark.parametrize("arguments", [[], ["--domid", "x", "list"], ["--domid", "1", "blk", "read", "-1"]])
def test_wrong_arguments_are_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_code:
        main(arguments)
    assert exit_code.value.code == USAGE
    assert "usage" in capsys.readouterr().err


def test_nobody_reading_the_output_is_no_traceback(directory: Path, emulator: StartEmulator, tmp_path: Path) -> None:
    image = tmp_path / "big.img"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    emulator(f"blk,path={image}")
    command = [sys.executable, "-m", "guest", *LOCAL, "blk", "read", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(PATIENCE) == FAILED
        assert process.stderr.read() == b""


def test_the_hypervisor_can_stand_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VIRTIO_DM_HYPERVISOR", "kvm")
    assert main(["--domid", "1", "list"]) == USAGE
    assert "unknown hypervisor 'kvm'" in capsys.readouterr().err
