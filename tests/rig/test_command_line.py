"""The rig's command line: wrong use is one line, before anything is built or booted."""

import os
import subprocess
from pathlib import Path

import pytest

from scripts.xen_rig import cli, host, order
from scripts.xen_rig.errors import RIG_FAILED, RigError

PROGRAM = Path(host.__file__).parent.parent / "xen-rig"


def xen_rig(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "VIRTIO_DM_RIG_CACHE": str(cache)}
    return subprocess.run(
        [PROGRAM, *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("arguments", [(), ("boot",), ("run",), ("build", "surplus"), ("run", "--timeout", "0", "x")])
def test_wrong_arguments_are_refused(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = xen_rig(*arguments, cache=tmp_path / "cache")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("xen-rig")
    assert not (tmp_path / "cache").exists()


def test_help_gives_the_exit_codes(tmp_path: Path) -> None:
    done = xen_rig("run", "--help", cache=tmp_path)
    assert done.returncode == 0
    assert "126 Xen or dom0 died" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "/no/such"), "/no/such: No such file or directory: name a script of this machine"),
        (("run", "--share", "/no/such", "/bin/true"), "/no/such is no directory: make it first"),
        (("shell",), "shell needs a terminal; to run commands: scripts/xen-rig run SCRIPT"),
    ],
)
def test_what_cannot_be_run_is_one_line_before_anything_is_built(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    done = xen_rig(*arguments, cache=tmp_path / "cache")
    assert (done.returncode, done.stderr) == (RIG_FAILED, f"xen-rig: {message}\n")
    assert not (tmp_path / "cache/apt").exists()


def test_a_dom0_of_no_kind_is_one_line_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIRTIO_DM_RIG_DOM0", "hvm")
    done = xen_rig("run", "/bin/true", cache=tmp_path / "cache")
    assert (done.returncode, done.stderr) == (
        RIG_FAILED,
        "xen-rig: VIRTIO_DM_RIG_DOM0 is 'hvm': set it to pv or pvh\n",
    )
    assert not (tmp_path / "cache/apt").exists()


def test_options_after_the_script_are_the_scripts() -> None:
    arguments = cli.parse(["run", "--timeout", "5", "x.sh", "--verbose", "-k", "v"])
    assert (arguments.timeout, arguments.verbose, arguments.arguments) == (5.0, False, ["--verbose", "-k", "v"])


def test_options_of_test_that_are_not_the_rigs_are_pytests() -> None:
    arguments = cli.parse(["test", "-k", "pv", "--timeout", "5", "-x"])
    assert (arguments.timeout, arguments.arguments) == (5.0, ["-k", "pv", "-x"])


def test_a_script_keeps_its_arguments_whatever_they_contain(tmp_path: Path) -> None:
    script = tmp_path / "a.sh"
    script.write_text("echo\n")
    out = tmp_path / "out"
    out.mkdir()
    assert order.script(out, script, ["a b", "$c"]) == "exec bash /rig/host/a.sh 'a b' '$c'"
    script.write_text("#!/usr/bin/python3\n")
    assert order.script(out, script, []) == "exec /rig/host/a.sh"


@pytest.mark.parametrize(
    ("arguments", "last"),
    [
        (["-k", "pv"], "/rig/site/tree/tests/xen"),
        (["tests/xen/test_domains.py::test_x"], "tests/xen/test_domains.py::test_x"),
    ],
)
def test_pytest_gets_the_xen_tests_unless_others_are_named(arguments: list[str], last: str) -> None:
    assert order.tests("pv", arguments).endswith(f" {last}")


def test_without_root_missing_packages_are_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "SEARCHED", "/nonexistent")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(
        RigError, match=r"missing Debian packages; as root: apt-get install .*e2fsprogs.*qemu-system-x86"
    ):
        host.require_tools()
