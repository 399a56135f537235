"""The part of a domU's ramdisk that changes with Debian only: busybox, Python, modules, libraries of Xen.

Cut out of dom0's root. First process and agent are appended to it as another archive, see ramdisk.py; our package
comes into a running domU, see site_packages.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from scripts.xen_rig import modules, recipe
from scripts.xen_rig.cpio import Ramdisk
from scripts.xen_rig.host import run

if TYPE_CHECKING:
    from scripts.xen_rig.root import Root

PYTHON_WITHOUT: Final = (
    "ensurepip", "distutils", "turtledemo", "tkinter", "wsgiref", "dbm", "curses", "venv", "sqlite3", "xmlrpc",
    "turtle.py", "turtle.cpython", "pdb.", "doctest.", "config-",
)  # fmt: skip
"""Beginnings of names in the standard library that the domUs do without."""


STORE_COMMANDS: Final = ("read", "write", "list", "ls", "rm", "exists", "watch", "chmod")
LOADER: Final = "usr/lib64/ld-linux-x86-64.so.2"


def write(file: BinaryIO, root: Root, release: str) -> None:
    ramdisk = Ramdisk(file)
    for name in ("usr/bin", "usr/sbin", "usr/lib", "usr/lib64"):
        ramdisk.directory(name)
        ramdisk.link(name.removeprefix("usr/"), name)
    for name in ("dev", "proc", "sys", "run", "tmp", "root", "etc", "var"):
        ramdisk.directory(name)
    ramdisk.link("var/run", "/run")
    for name in ("etc/passwd", "etc/group", "etc/hosts"):
        ramdisk.copy(root.path / name, name)
    _write_busybox(ramdisk, root)
    _write_python(ramdisk, root)
    _write_programs(ramdisk, root)
    write_modules(ramdisk, root.path, release, recipe.DOMU_MODULES)
    ramdisk.close()


def write_modules(ramdisk: Ramdisk, root: Path, release: str, names: Iterable[str]) -> None:
    """The modules `names` with what they depend on. In dependency order in a list, for `insmod`: no modprobe needed."""
    tree = root / "lib/modules" / release
    for path in modules.closure(names, tree):
        ramdisk.copy(path, f"usr/lib/modules/{release}/{path.relative_to(tree)}")
    ramdisk.copy(tree / "modules.dep", f"usr/lib/modules/{release}/modules.dep")


def _write_busybox(ramdisk: Ramdisk, root: Root) -> None:
    ramdisk.copy(root.path / "usr/bin/busybox", "usr/bin/busybox")
    own = {Path(program).name for program in recipe.DOMU_PROGRAMS} | {"busybox"}
    for applet in run([root.path / "usr/bin/busybox", "--list"]).split():
        if applet not in own:
            ramdisk.link(f"usr/bin/{applet}", "busybox")


def _write_python(ramdisk: Ramdisk, root: Root) -> None:
    library = f"usr/lib/python{root.python_minor()}"

    def copy(directory: Path, name: str) -> None:
        for path in sorted(directory.iterdir()):
            if path.name.startswith(PYTHON_WITHOUT) or path.name.startswith(recipe.DOMU_WITHOUT):
                continue
            if path.is_dir() and not path.is_symlink():
                copy(path, f"{name}/{path.name}")
            else:
                ramdisk.copy(path, f"{name}/{path.name}")

    copy(root.path / library, library)


def _write_programs(ramdisk: Ramdisk, root: Root) -> None:
    library = root.path / "usr/lib/x86_64-linux-gnu"
    programs = [root.inside(program) for program in recipe.DOMU_PROGRAMS]
    named = [path for path in library.iterdir() if path.name.startswith(recipe.DOMU_LIBRARIES) and not path.is_dir()]
    extensions = (root.path / f"usr/lib/python{root.python_minor()}/lib-dynload").iterdir()
    wanted = [path for path in extensions if not path.name.startswith(recipe.DOMU_WITHOUT)]
    needed = {path for user in [*programs, *named, *wanted] for path in root.needed(user)}

    names = {*recipe.DOMU_PROGRAMS, LOADER, *(f"usr/bin/xenstore-{name}" for name in STORE_COMMANDS)}
    names |= {str(path.relative_to(root.path)) for path in [*programs, *named]}
    names |= {str(path.parent.resolve().relative_to(root.path) / path.name) for path in needed}
    # Links and what they lead to.
    names |= {str(root.inside(name).relative_to(root.path)) for name in names}
    for name in sorted(names):
        ramdisk.copy(root.path / name, name)
