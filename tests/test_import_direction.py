"""The layers: protocol <- cpp_ring <- {guest, emulator} -> devices. Read from the imports, so that nothing need run."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What each package may import besides itself and the standard library.
PACKAGES = {
    "cpp_ring": {"numpy"},
    "devices": {"numpy"},
    "guest": {"cpp_ring", "numpy"},
    "emulator": {"cpp_ring", "devices", "numpy", "click", "rich", "matplotlib"},
}

# What each directory of C or C++ may include by its own name.
HEADERS = {
    "protocol": ["protocol"],
    "cpp_ring/src": ["protocol", "cpp_ring/src"],
    "cpp_ring/bindings": ["protocol", "cpp_ring/src", "cpp_ring/bindings"],
}


def imported_modules(source: str, package: tuple[str, ...]) -> Iterator[str]:
    """Absolute names of the modules that a module of `package` imports; "" for one above the top."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names)
            case ast.ImportFrom(module=module, level=0):
                yield module or ""
            case ast.ImportFrom(module=module, level=level):
                base = package[: len(package) - level + 1]
                yield ".".join([*base, module or ""]) if base else ""
            case ast.Call(
                func=ast.Name(id="__import__" | "import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield name


def python_violations(root: Path) -> Iterator[str]:
    for package, allowed in PACKAGES.items():
        for path in sorted((root / package).rglob("*.py*")):
            if path.suffix not in {".py", ".pyi"}:
                continue
            relative = path.relative_to(root)
            for module in imported_modules(path.read_text(), relative.parent.parts):
                top = module.split(".")[0]
                if top != package and top not in allowed and top not in sys.stdlib_module_names:
                    yield f"{relative} imports {module}"


def include_violations(root: Path) -> Iterator[str]:
    for directory, reachable in HEADERS.items():
        for path in sorted((root / directory).rglob("*.[ch]*")):
            relative = path.relative_to(root)
            for bracket, header in re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', path.read_text(), re.MULTILINE):
                own = bracket == '"' and any((root / place / header).exists() for place in reachable)
                if header in {"atomic", "stdatomic.h"}:
                    allowed = str(relative) == "cpp_ring/src/shared.hpp"
                elif header.startswith("pybind11/") or header == "Python.h":
                    allowed = directory == "cpp_ring/bindings"
                else:
                    allowed = own or bracket == "<"
                if not allowed:
                    yield f"{relative} includes {header}"


def test_the_tree_keeps_its_layers() -> None:
    assert [*python_violations(ROOT), *include_violations(ROOT)] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_there_to_be_checked(package: str) -> None:
    assert any((ROOT / package).glob("*.py"))


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("cpp_ring/a.py", "import devices"),
        ("cpp_ring/a.py", "from emulator import x"),
        ("cpp_ring/_core.pyi", "import guest"),
        ("devices/a.py", "import cpp_ring._core"),
        ("devices/a.py", "import click"),
        ("devices/deep/a.py", "from ... import cpp_ring"),
        ("devices/a.py", "def late():\n    from cpp_ring import x"),
        ("devices/a.py", "importlib.import_module('cpp_ring')"),
        ("guest/a.py", "import emulator"),
        ("guest/a.py", "from devices.blk import x"),
        ("emulator/a.py", "from guest import x"),
        ("emulator/a.py", "__import__('guest')"),
    ],
)
def test_an_import_against_the_direction_is_found(tmp_path: Path, path: str, line: str) -> None:
    write(tmp_path / path, line)
    assert len(list(python_violations(tmp_path))) == 1


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("cpp_ring/a.py", "from . import _core"),
        ("devices/deep/a.py", "from ..errors import x"),
        ("devices/a.py", "import os, numpy.typing"),
        ("guest/a.py", "from cpp_ring import x"),
        ("emulator/a.py", "import devices.blk, cpp_ring, click"),
    ],
)
def test_an_import_along_the_direction_is_accepted(tmp_path: Path, path: str, line: str) -> None:
    write(tmp_path / path, line)
    assert list(python_violations(tmp_path)) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("cpp_ring/src/ring.hpp", "#include <atomic>"),
        ("cpp_ring/src/ring.cpp", "#  include <pybind11/pybind11.h>"),
        ("cpp_ring/src/ring.cpp", "#include <Python.h>"),
        ("cpp_ring/src/ring.cpp", '#include "register.hpp"'),
        ("cpp_ring/bindings/module.cpp", "#include <atomic>"),
        ("protocol/wire.h", '#include "shared.hpp"'),
    ],
)
def test_an_include_against_the_direction_is_found(tmp_path: Path, path: str, line: str) -> None:
    write(tmp_path / "cpp_ring/src/shared.hpp", "#include <atomic>")
    write(tmp_path / "cpp_ring/bindings/register.hpp", '#include "shared.hpp"')
    write(tmp_path / path, line)
    assert len(list(include_violations(tmp_path))) == 1


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
