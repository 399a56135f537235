"""The rig's cache: what is there is whole and belongs to its recipe, whoever was killed while building."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.xen_rig import cache, root
from scripts.xen_rig.errors import RigError
from scripts.xen_rig.packages import Package


def write_file(out: Path) -> None:
    (out / "file").write_text("whole")


def test_the_key_depends_on_package_versions_and_on_the_recipes_text(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.py"
    recipe.write_text("a")
    old, new = ([Package(f"xen_{version}_amd64.deb", 1)] for version in ("1", "2"))
    first = cache.key(old, files=[recipe])
    assert cache.key(old, files=[recipe]) == first
    assert cache.key(new, files=[recipe]) != first
    recipe.write_text("b")
    assert cache.key(old, files=[recipe]) != first


def test_the_named_ingredients_of_the_root_are_there() -> None:
    assert [path for path in cache.sources(*root.INGREDIENTS) if not path.is_file()] == []


def test_an_artefact_is_made_once(tmp_path: Path) -> None:
    made = cache.artefact(tmp_path, "thing", "1", write_file)
    assert (made / "file").read_text() == "whole"
    assert cache.artefact(tmp_path, "thing", "1", lambda _: pytest.fail("made again")) == made


def test_a_maker_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(out: Path) -> None:
        write_file(out)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        cache.artefact(tmp_path, "thing", "1", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["lock-thing"]


def test_a_killed_builder_leaves_no_artefact_and_its_remains_go_with_the_next(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from scripts.xen_rig import cache\n"
        "def make(out):\n"
        "    (out / 'file').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "cache.artefact(Path(sys.argv[1]), 'thing', '1', make)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(cache.HERE.parent.parent)}
    done = subprocess.run([sys.executable, "-c", program, tmp_path], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path.name[:4] for path in tmp_path.iterdir() if path.is_dir()] == ["new-"]
    assert (cache.artefact(tmp_path, "thing", "1", write_file) / "file").read_text() == "whole"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock-thing", "thing-1"]


def test_old_artefacts_of_a_kind_go(tmp_path: Path) -> None:
    for number in range(cache.KEPT + 2):
        made = cache.artefact(tmp_path, "thing", str(number), write_file)
        os.utime(made, (number, number))
    cache.artefact(tmp_path, "other", "1", write_file)
    names = sorted(path.name for path in tmp_path.glob("thing-*"))
    assert len(names) == cache.KEPT
    assert f"thing-{cache.KEPT + 1}" in names


def test_the_place_is_the_users_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.delenv("VIRTIO_DM_RIG_CACHE", raising=False)
    assert cache.directory() == Path("/xdg/virtio-dm/xen-rig")
    monkeypatch.setenv("VIRTIO_DM_RIG_CACHE", "/mine")
    assert cache.directory() == Path("/mine")


def test_the_directory_of_a_run_lives_as_long_as_the_run(tmp_path: Path) -> None:
    with cache.scratch(tmp_path) as one:
        write_file(one)
        with cache.scratch(tmp_path) as two:
            assert (one / "file").exists()
        assert not two.exists()
    assert not one.exists()


def test_the_directory_of_a_killed_run_goes_with_the_next(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from scripts.xen_rig import cache\n"
        "with cache.scratch(Path(sys.argv[1])):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(cache.HERE.parent.parent)}
    subprocess.run([sys.executable, "-c", program, tmp_path], env=environment, check=False)
    assert len(list(tmp_path.glob("run-*"))) == 1
    with cache.scratch(tmp_path) as directory:
        assert list(tmp_path.glob("run-*")) == [directory]


def test_a_place_that_qemu_cannot_load_from_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRTIO_DM_RIG_CACHE", "/my cache")
    with pytest.raises(RigError, match="a path without a space"):
        cache.directory()
