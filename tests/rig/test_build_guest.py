"""scripts/build-guest says in one line what it lacks. That it builds, scripts/xen-rig shows."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "build-guest"


def complaint(*arguments: str | Path) -> str:
    done = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """A directory that looks like headers of a kernel, as far as it is looked at."""
    (tmp_path / "include" / "config").mkdir(parents=True)
    (tmp_path / "include/config/auto.conf").write_text("CONFIG_XEN=y\nCONFIG_VIRTIO=m\nCONFIG_DMA_OPS=y\n")
    (tmp_path / "include/config/kernel.release").write_text("9.9.9-test\n")
    return tmp_path


def test_headers_that_are_not_there(tmp_path: Path) -> None:
    said = complaint("--kernel", tmp_path / "none")
    assert f"no kernel headers in {tmp_path}/none; as root: apt-get install linux-headers-" in said


def test_a_directory_that_is_no_kernel(tmp_path: Path) -> None:
    assert "include/config/auto.conf is missing" in complaint("--kernel", tmp_path)


@pytest.mark.parametrize("option", ["XEN", "VIRTIO", "DMA_OPS"])
def test_a_kernel_without_what_the_module_needs(kernel: Path, option: str) -> None:
    config = kernel / "include/config/auto.conf"
    lines = [line for line in config.read_text().splitlines(keepends=True) if f"CONFIG_{option}=" not in line]
    config.write_text("".join(lines))
    said = complaint("--kernel", kernel, "--output", kernel / "out")
    assert "kernel 9.9.9-test has no" in said
    assert f"CONFIG_{option}" in said


@pytest.mark.skipif(shutil.which("make") is None or shutil.which("gcc") is None, reason="no compiler")
def test_a_build_that_fails_names_the_kernel_and_its_log(kernel: Path) -> None:
    said = complaint("--kernel", kernel, "--output", kernel / "out")
    assert said.startswith("build-guest: kernel 9.9.9-test: ")
    assert str(kernel / "out/log") in said


@pytest.mark.parametrize("arguments", [["--nonsense"], ["--kernel"]])
def test_wrong_arguments(arguments: list[str]) -> None:
    assert complaint(*arguments).startswith("build-guest: ")
