"""Python code for dom0 and the domUs, in two images: the libraries, which change rarely, and this checkout, which
changes with each edit.

Both come out of .venv, as scripts/setup has installed them, so dom0 must have a Python of the same minor version: the
extension is compiled for it. Each image has an archive for the domUs beside the tree: /rig/libraries/domu.cpio, to be
appended to their ramdisk, and /rig/site/domu.cpio, to be unpacked once they run.
"""

from __future__ import annotations

import fnmatch
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from scripts.xen_rig import cache
from scripts.xen_rig.cpio import Ramdisk
from scripts.xen_rig.errors import RigError
from scripts.xen_rig.ext4 import make_image
from scripts.xen_rig.host import run, say

REPOSITORY: Final = Path(__file__).parent.parent.parent
LIBRARIES: Final = ("numpy", "click", "rich")
"""Of the domUs; dom0 has TEST_LIBRARIES too. Each with what it requires."""
TEST_LIBRARIES: Final = ("pytest",)
OURS: Final = ("cpp_ring", "devices", "emulator", "guest")
SITE_SIZE: Final = 64 << 20
"""Every site image is as large as the others (or a multiple), so that another can take its place in a saved machine."""
LEFT_OUT: Final = (
    "*/tests/*", "*/__pycache__/*", "*.pyi", "*.a", "*.h", "../*", "numpy/f2py/*", "numpy/random/lib/*",
    "*.dist-info/licenses/*",
)  # fmt: skip

LISTING: Final = """
import importlib.metadata, json, re, sys
def closure(names):
    seen, waiting = {}, list(names)
    while waiting:
        name = waiting.pop()
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            if name in names:
                raise
            continue
        if found.name not in seen:
            seen[found.name] = found
            waiting += [re.match(r"[\\w.-]+", line)[0] for line in found.requires or () if "extra ==" not in line]
    return {name: [found.version, [str(file) for file in found.files or ()]] for name, found in sorted(seen.items())}
site = importlib.metadata.distribution("pip").locate_file("")
domu, test = (argument.split(",") for argument in sys.argv[1:])
minor = "%d.%d" % sys.version_info[:2]
print(json.dumps({"python": minor, "path": str(site), "domu": closure(domu), "dom0": closure(domu + test)}))
"""


class Environment:
    """The .venv of this checkout."""

    def __init__(self) -> None:
        setup = REPOSITORY / "scripts/setup"
        if subprocess.run([setup, "test"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False).returncode:
            raise RigError("scripts/setup failed: what it said above must be repaired first")
        self.interpreter = REPOSITORY / ".venv/bin/python"
        found = json.loads(run([self.interpreter, "-c", LISTING, ",".join(LIBRARIES), ",".join(TEST_LIBRARIES)]))
        self.minor: str = found["python"]
        self.path = Path(found["path"])
        self.dom0: dict[str, tuple[str, list[str]]] = found["dom0"]
        self.domu: dict[str, tuple[str, list[str]]] = found["domu"]

    def require(self, minor: str) -> None:
        if self.minor != minor:
            raise RigError(f".venv has Python {self.minor}, dom0 {minor}: put a python{minor} first on PATH as python3")

    def compile(self, tree: Path, place: str) -> None:
        """Bytecode that is believed without a look at the source, for a tree that will be at `place`."""
        options = ["-q", "-j", "0", "--invalidation-mode", "unchecked-hash", "-s", str(tree), "-p", place]
        run([self.interpreter, "-m", "compileall", *options, str(tree)])


def libraries(place: Path, environment: Environment) -> Path:
    """The image of the libraries."""
    versions = {name: version for name, (version, _) in environment.dom0.items()}
    identity = cache.key(versions, environment.minor, files=cache.sources("site_packages.py", "ext4.py", "cpio.py"))
    return cache.artefact(place, "libraries", identity, lambda out: _make_libraries(out, environment)) / "image.ext4"


def site(place: Path, environment: Environment, module: Path) -> Path:
    """The image of this checkout: package, tests, the rig's own code for dom0 and domUs, the guest's kernel module."""
    files = {**dict(_site_files(environment.path)), f"module/{module.name}": module}
    content = [*files.values(), *cache.sources("site_packages.py", "ext4.py", "cpio.py")]
    identity = cache.key(sorted(files), environment.minor, files=content)
    return cache.artefact(place, "site", identity, lambda out: _make_site(out, environment, files)) / "image.ext4"


def _make_libraries(out: Path, environment: Environment) -> None:
    say("making the image of Python libraries")
    tree = out / "tree"
    for name in sorted({file for _, files in environment.dom0.values() for file in files}):
        if _wanted(name) and (environment.path / name).is_file():
            _copy(environment.path / name, tree / name)
    environment.compile(tree, "/rig/libraries")
    tops = {Path(file).parts[0] for _, files in environment.domu.values() for file in files if _wanted(file)}
    with (out / "domu.cpio").open("wb") as file:
        ramdisk = Ramdisk(file)
        for top in sorted(tops):
            if (tree / top).exists():
                ramdisk.copy(tree / top, f"rig/libraries/{top}")
        ramdisk.close()
    (out / "domu.cpio").rename(tree / "domu.cpio")
    make_image(tree, out / "image.ext4")
    shutil.rmtree(tree)


def _make_site(out: Path, environment: Environment, files: dict[str, Path]) -> None:
    tree = out / "tree"
    for name, source in files.items():
        _copy(source, tree / name)
    environment.compile(tree, "/rig/site")
    (tree / "bin").mkdir(exist_ok=True)
    launcher = "#!/usr/bin/python3\nimport sys\nfrom emulator.__main__ import main\nsys.exit(main())\n"
    (tree / "bin/virtio-dm").write_text(launcher)
    (tree / "bin/virtio-dm").chmod(0o755)
    with (out / "domu.cpio").open("wb") as file:
        ramdisk = Ramdisk(file)
        ramdisk.copy(tree / "bin", "rig/site/bin")
        ramdisk.copy(tree / "package", "rig/site/package")
        ramdisk.copy(tree / "module", "rig/site/module")
        ramdisk.close()
    (out / "domu.cpio").rename(tree / "domu.cpio")
    make_image(tree, out / "image.ext4", multiple=SITE_SIZE)
    shutil.rmtree(tree)


def _site_files(installed: Path) -> Iterator[tuple[str, Path]]:
    for package in [*(installed / name for name in OURS), *installed.glob("virtio_dm-*.dist-info")]:
        for path in sorted(package.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield f"package/{path.relative_to(installed)}", path
    for directory in ("tests", "scripts/xen_rig"):
        for path in sorted((REPOSITORY / directory).rglob("*")):
            if path.is_file() and path.suffix not in (".cpp", ".hpp", ".pyc"):
                yield f"tree/{path.relative_to(REPOSITORY)}", path
    for name in ("pyproject.toml", "README.md"):
        yield f"tree/{name}", REPOSITORY / name
    for path in sorted((REPOSITORY / "docs").glob("*.md")):
        yield f"tree/docs/{path.name}", path


def _wanted(name: str) -> bool:
    return not any(fnmatch.fnmatch(name, pattern) for pattern in LEFT_OUT)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
