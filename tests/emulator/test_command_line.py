"""Every command with wrong words: one clear line, a code of its own, and nothing opened or started."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from devices.disk_image import DiskImage
from devices.net_backends import SocketBackend
from emulator import cli
from emulator.exit_codes import MEANINGS, ExitCode, table
from tests.emulator.machines import MODELS

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("list", "--json")` -> (exit code, standard output, standard error), in a directory of its own."""
    monkeypatch.setenv("VIRTIO_DM_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "disk.img").write_bytes(bytes(4096))

    def invoke(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.run(arguments)
        out, err = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return int(end.value.code), out, err

    return invoke


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        ("bogus", ExitCode.USAGE, "no such command 'bogus'; `virtio-dm --help`"),
        ("run", ExitCode.USAGE, "--domid"),
        ("run --domid 0", ExitCode.USAGE, "0 is not in the range"),
        ("run --domid x", ExitCode.USAGE, "not a valid integer"),
        ("run --domid 1 --hypervisor kvm", ExitCode.USAGE, "none of xen, local, local:NAME"),
        ("run --domid 1 --hypervisor local:", ExitCode.USAGE, "none of xen"),
        ("run --domid 1 --hypervisor local:a/b", ExitCode.USAGE, "machine name"),
        ("run --domid 1 --hypervisor xen", ExitCode.NO_HYPERVISOR, "no Xen here"),
        ("run --domid 1 --poll-us -5", ExitCode.USAGE, "neither a number"),
        ("run --domid 1 --poll-us 1.5", ExitCode.USAGE, "neither a number"),
        ("run --domid 1 --config none.toml", ExitCode.MISSING_FILE, "cannot read none.toml"),
        ("run --domid 1 --device nonsense", ExitCode.BAD_DEVICE, "no device 'nonsense'"),
        ("run --domid 1 --device blk", ExitCode.BAD_DEVICE, "option 'path' is missing"),
        ("run --domid 1 --device blk,pth=disk.img", ExitCode.BAD_DEVICE, "no option 'pth'"),
        ("run --domid 1 --device blk,path=disk.img,readonly=perhaps", ExitCode.BAD_DEVICE, "expected one of"),
        ("run --domid 1 --device blk,path=none.img", ExitCode.MISSING_FILE, "none.img"),
        ("run --domid 1 --device ./none.py:Thing", ExitCode.BAD_DEVICE, "no such file"),
        ("run --domid 1 --device path=disk.img", ExitCode.BAD_DEVICE, "first the model"),
        ("attach", ExitCode.USAGE, "DOMID"),
        ("attach 1", ExitCode.USAGE, "SPEC"),
        ("attach 1 nonsense", ExitCode.BAD_DEVICE, "no device"),
        ("attach 1 rng --id -1", ExitCode.USAGE, "range"),
        ("attach 1 rng --hypervisor xen", ExitCode.NO_HYPERVISOR, "no Xen here"),
        ("detach 1", ExitCode.USAGE, "DEVID"),
        ("update 1 0 nonsense", ExitCode.BAD_DEVICE, "write key=value"),
        ("devices nonsense", ExitCode.BAD_DEVICE, "no device"),
        ("local --domains -1", ExitCode.USAGE, "range"),
        ("local x --list --stop", ExitCode.USAGE, "at a time"),
        ("local x --list", ExitCode.NO_HYPERVISOR, "no local machine"),
        ("local a/b", ExitCode.USAGE, "machine name"),
        ("supervise --hypervisor xen", ExitCode.NO_HYPERVISOR, "no Xen here"),
    ],
)
def test_wrong_words_have_a_line_and_a_code_and_open_nothing(
    run: Run, tmp_path: Path, arguments: str, code: ExitCode, complaint: str
) -> None:
    result, out, err = run(*arguments.split())
    assert (result, out) == (code, "")
    assert complaint in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "runtime").exists()


@pytest.mark.parametrize("command", ["run --domid 1 --device", "attach 1"])
def test_an_image_or_a_socket_in_use_is_found_before_anything_is_opened(run: Run, tmp_path: Path, command: str) -> None:
    image = DiskImage(tmp_path / "disk.img", readonly=False)
    image.open()
    socket = SocketBackend(tmp_path / "a", tmp_path / "b")
    socket.open()
    try:
        for spec, what in (("blk,path=disk.img", "image"), ("net,socket=a,peer=c", "socket")):
            code, out, err = run(*command.split(), spec)
            assert (code, out) == (ExitCode.MISSING_FILE, "")
            assert re.fullmatch(f"virtio-dm: {what} {tmp_path}/[^ ]* is in use already; .*\n", err), err
            assert not (tmp_path / "runtime").exists()
    finally:
        image.close()
        socket.close()


@pytest.fixture
def no_capability(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without CAP_NET_ADMIN, on a host whose interfaces are those of the directory."""
    (tmp_path / "status").write_text("CapEff:\t0000000000000000\n")
    (tmp_path / "tun").touch()
    (tmp_path / "net").mkdir()
    for name, place in (("_STATUS", "status"), ("_TUN", "tun"), ("_INTERFACES", "net")):
        monkeypatch.setattr(f"devices.net_backends.{name}", tmp_path / place)
    return tmp_path / "net"


def test_a_tap_that_the_user_may_not_make_is_found_before_anything_is_opened(
    run: Run, tmp_path: Path, no_capability: Path
) -> None:
    code, _, err = run("run", "--domid", "1", "--device", "net,tap=tap7")
    assert code == ExitCode.NOT_PERMITTED
    assert "`ip tuntap add dev tap7 mode tap user" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "runtime").exists()


def test_the_doctor_knows_who_may_make_a_tap(run: Run, no_capability: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tap() -> list[str]:
        (line,) = [line for line in run("doctor")[1].splitlines() if line.split()[1:2] == ["tap"]]
        return line.split()

    monkeypatch.setattr("emulator.commands.doctor.TUN", no_capability.parent / "tun")
    assert tap()[0] == "missing"
    assert "may not make interfaces" in " ".join(tap())
    (no_capability / "tap7").mkdir()
    for node, value in (("tun_flags", "0x1002"), ("owner", str(os.geteuid())), ("group", "-1")):
        (no_capability / "tap7" / node).write_text(value)
    assert tap()[0] == "ok"
    assert "made for this user: tap7" in " ".join(tap())
    (no_capability.parent / "status").write_text("CapEff:\t0000000000001000\n")
    assert tap()[0] == "ok"


def test_the_doctor_tells_cores_from_threads(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emulator.cpus.allowed", lambda: [0, 1])
    for cores, verdict in ((1, "missing"), (2, "ok")):
        monkeypatch.setattr("emulator.cpus.count_cores", lambda _, cores=cores: cores)
        (line,) = [line for line in run("doctor")[1].splitlines() if line.split()[1:2] == ["cores"]]
        assert line.split()[0] == verdict
        assert f"{cores}, with 2 CPUs for this process" in line


def test_a_model_that_fails_at_import_is_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("1 / 0\n")
    code, _, err = run("run", "--domid", "1", "--device", "./bad.py:Thing")
    assert code == ExitCode.BAD_DEVICE
    assert "ZeroDivisionError" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("where", ["__init__", "check"])
def test_a_model_that_fails_when_it_is_asked_is_one_line(run: Run, tmp_path: Path, where: str) -> None:
    (tmp_path / "bad.py").write_text(
        "from devices import Device\n"
        "class Thing(Device):\n    name = 'thing'\n    device_id = 66\n"
        f"    def {where}(self):\n        raise KeyError(1)\n"
    )
    code, _, err = run("run", "--domid", "1", "--device", "./bad.py:Thing")
    assert code == ExitCode.BAD_DEVICE
    assert "KeyError" in err
    assert len(err.splitlines()) == 1


def test_options_can_stand_in_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRTIO_DM_HYPERVISOR", "xen")
    monkeypatch.setenv("VIRTIO_DM_RUN_DOMID", "1")
    assert run("run")[0] == ExitCode.NO_HYPERVISOR
    monkeypatch.setenv("VIRTIO_DM_RUN_POLL_US", "soon")
    code, _, err = run("run")
    assert code == ExitCode.USAGE
    assert "soon" in err


def test_the_command_line_goes_before_the_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('domid = 1\nhypervisor = "local"\n[[device]]\nmodel = "rng"\n')
    assert run("run", "--config", "run.toml", "--hypervisor", "xen")[0] == ExitCode.NO_HYPERVISOR


@pytest.mark.parametrize("command", [None, *cli.COMMANDS])
def test_each_command_has_help(run: Run, command: str | None) -> None:
    code, out, _ = run(*([command] if command else []), "--help")
    assert code == 0
    assert out.startswith("Usage: virtio-dm")


@pytest.mark.parametrize("command", ["attach", "detach"])
def test_commands_that_other_tests_fork_start_from_nothing(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "emulator", command, "--help"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"virtio-dm {command}" in done.stdout


def test_help_shows_every_command_and_every_exit_code(run: Run) -> None:
    _, out, _ = run("--help")
    assert set(MEANINGS) == set(ExitCode)
    assert table() in out
    for name in cli.COMMANDS:
        assert f"\n  {name} " in out


def test_the_models_are_listed_and_described(run: Run) -> None:
    code, out, _ = run("devices")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()[1:4]] == [["blk", "2"], ["net", "1"], ["rng", "4"]]
    _, out, _ = run("devices", "blk")
    rows = [line.split() for line in out.splitlines()]
    assert ["0", "8", "capacity", "le64", "read-only"] in rows
    assert ["32", "1", "writeback", "u8", "read-write", "VIRTIO_BLK_F_CONFIG_WCE", "(11)"] in rows
    assert ["path", "Path", "required"] in rows
    assert ["readonly", "bool", "off"] in rows
    assert ["0", "requestq1", "256"] in rows
    assert ["9", "VIRTIO_BLK_F_FLUSH", "always"] in rows
    assert ["12", "VIRTIO_BLK_F_MQ", "may", "be"] in rows
    assert ["17", "VIRTIO_BLK_F_ZONED", "never"] in rows


def test_a_model_outside_the_tree_is_described_too(run: Run) -> None:
    code, out, _ = run("devices", f"{MODELS}:Echo")
    assert code == 0
    assert ["4", "4", "hooked", "le32", "read-write"] in [line.split() for line in out.splitlines()]
    assert ["start", "int", "0"] in [line.split() for line in out.splitlines()]


def test_the_doctor_looks_at_everything(run: Run) -> None:
    code, out, _ = run("doctor")
    assert code == 0
    for name in (
        "kernel",
        "cores",
        "python",
        "engine",
        "numpy",
        "local hypervisor",
        "xen",
        "tap",
        "qemu-storage-daemon",
    ):
        assert f"  {name}" in out


def test_the_doctor_says_what_installs_what_is_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    _, out, _ = run("doctor")
    assert "apt-get install g++" in out


def test_a_reader_that_leaves_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m emulator devices net | true", shell=True, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""


def test_an_output_that_is_closed_is_no_error_and_is_nobody_elses_file() -> None:
    for closed in (">&-", "2>&-", "<&-", "<&- >&- 2>&-"):
        done = subprocess.run(
            f"{sys.executable} -m emulator devices net {closed}", shell=True, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_is_a_code_and_no_traceback(tmp_path: Path) -> None:
    program = "import os, signal; from emulator import cli, toolstack\n"
    program += "toolstack.entries = lambda *_: os.kill(os.getpid(), signal.SIGINT)\n"
    program += "cli.run(['list'])"
    environment = os.environ | {"VIRTIO_DM_RUNTIME_DIR": str(tmp_path)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60
        )
        assert (done.returncode, done.stderr.strip()) == (ExitCode.INTERRUPTED, "")
    finally:
        subprocess.run([sys.executable, "-m", "emulator", "local", "--stop"], env=environment, check=True, timeout=60)


def test_a_local_machine_by_hand(tmp_path: Path) -> None:
    environment = os.environ | {"VIRTIO_DM_RUNTIME_DIR": str(tmp_path)}
    local = [sys.executable, "-m", "emulator", "local", "hand"]

    def command(*arguments: str) -> tuple[int, str]:
        done = subprocess.run([*local, *arguments], capture_output=True, text=True, env=environment, timeout=60)
        return done.returncode, done.stdout

    with subprocess.Popen([*local, "--domains", "1"], stderr=subprocess.PIPE, text=True, env=environment) as broker:
        assert broker.stderr is not None
        assert "machine hand" in broker.stderr.readline()
        assert command("--create", "5") == (0, "")
        assert command("--create", "5") == (ExitCode.NO_DOMAIN, "")
        assert command("--list") == (0, "0\n1\n5\n")
        assert command("--destroy", "5") == (0, "")
        assert command("--destroy", "5") == (ExitCode.NO_DOMAIN, "")
        assert command() == (ExitCode.ALREADY_RUNNING, "")
        broker.send_signal(signal.SIGINT)
        assert broker.wait(30) == 0
    assert command("--stop")[0] == ExitCode.NO_HYPERVISOR
