"""The artefact that takes long: Debian's packages unpacked into dom0's root, and what is cut out of it.

Packages are unpacked, never installed: no script of theirs runs, so no root, no chroot, no service. What the scripts
would have done and dom0 needs is done in `finish`.

    xen          the hypervisor, as QEMU's multiboot loader wants it
    vmlinux      the kernel, uncompressed
    boot.cpio    busybox and the modules that find the root
    root.ext4    dom0's root, read-only; has the domUs' kernel and ramdisk in /usr/lib/rig
    about.json   release of the kernel, minor version of Python, versions
"""

from __future__ import annotations

import fnmatch
import gzip
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Final

from scripts.xen_rig import domu_base, modules, recipe
from scripts.xen_rig.cpio import Ramdisk
from scripts.xen_rig.errors import RigError
from scripts.xen_rig.ext4 import make_image
from scripts.xen_rig.host import run, say, tool
from scripts.xen_rig.kernel import vmlinux
from scripts.xen_rig.packages import Package, describe

INGREDIENTS: Final = ("root.py", "recipe.py", "modules.py", "kernel.py", "cpio.py", "domu_base.py", "ext4.py")
LOADER: Final = "usr/lib64/ld-linux-x86-64.so.2"
LIBRARY_PATH: Final = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")


class Root:
    """dom0's root on the way of being made in `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def inside(self, name: str) -> Path:
        """The file that `name` leads to, its links followed as dom0 would: an absolute one begins at this root."""
        path = self.path / name
        while path.is_symlink():
            target = path.readlink()
            path = self.path / target.relative_to("/") if target.is_absolute() else path.parent / target
        return path.parent.resolve() / path.name

    def command(self, program: str, name: str = "") -> list[str]:
        """How to run one of its programs on the host, with its own libraries. `name`: argv[0]."""
        libraries = ":".join(str(self.path / directory) for directory in LIBRARY_PATH)
        loader = [str(self.inside(LOADER)), "--inhibit-cache", "--library-path", libraries]
        return [*loader, *(["--argv0", name] if name else []), str(self.inside(program))]

    def needed(self, file: Path) -> list[Path]:
        """The shared libraries that an ELF file needs, as they lie below the root."""
        loader, *options, _ = self.command(LOADER)
        lines = run([loader, *options, "--list", file]).splitlines()
        found = [Path(line.split("=>")[1].split()[0]) for line in lines if re.match(r"\s*[^/\s]+ => ", line)]
        for path in found:
            if not path.is_relative_to(self.path):  # "not", or where the host has it
                raise RigError(f"dom0 lacks {path.name}, which {file.name} needs: add its package to recipe.py")
        return found

    def python_minor(self) -> str:
        return (self.path / "usr/bin/python3").readlink().name.removeprefix("python")


def make(out: Path, archives: Path, packages: Sequence[Package]) -> None:
    """Makes all the files of the artefact in `out`."""
    say(f"building dom0 and domU images ({describe(packages)})")
    root = Root(out.resolve() / "root")
    for directory in ("bin", "sbin", "lib", "lib64"):
        (root.path / "usr" / directory).mkdir(parents=True)
        (root.path / directory).symlink_to(f"usr/{directory}")
    kernel_package = _one(packages, "linux-image-[0-9]*")
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        kernel = pool.submit(modules.unpack, archives / kernel_package.file, root.path)
        jobs = [pool.submit(_unpack, archives / package.file, root.path) for package in packages if _used(package)]
        for job in jobs:
            job.result()
        release = kernel.result()
        compiled = pool.submit(_compile_python, root)
        (out / "vmlinux").write_bytes(vmlinux((root.path / "boot" / f"vmlinuz-{release}").read_bytes()))
        (out / "xen").write_bytes(gzip.decompress(_hypervisor(root.path).read_bytes()))
        shutil.rmtree(root.path / "boot")
        wanted = {*recipe.BOOT_MODULES, *recipe.DOM0_MODULES, *recipe.DOMU_MODULES}
        modules.keep_only(wanted, root.path / "lib/modules" / release)
        modules.index(root.path, release, root.command("usr/bin/kmod", "depmod"))
        compiled.result()
    finish(root)
    rig = root.path / "usr/lib/rig"
    rig.mkdir()
    os.link(out / "vmlinux", rig / "vmlinux")
    with (rig / "domu.cpio").open("wb") as file:
        domu_base.write(file, root, release)
    with (out / "boot.cpio").open("wb") as file:
        _write_boot_ramdisk(file, root, release)
    make_image(root.path, out / "root.ext4")
    about = {"kernel": release, "python": root.python_minor(), "versions": describe(packages)}
    (out / "about.json").write_text(json.dumps(about))
    shutil.rmtree(root.path)


def finish(root: Root) -> None:
    """What installation scripts would have left, as far as dom0 needs it."""
    path = root.path
    users = "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
    (path / "etc/passwd").write_text(users)
    (path / "etc/group").write_text("root:x:0:\ntty:x:5:\nnogroup:x:65534:\n")
    (path / "etc/hosts").write_text("127.0.0.1 localhost dom0\n")
    (path / "etc/hostname").write_text("dom0\n")
    (path / "etc/mtab").unlink(missing_ok=True)
    (path / "etc/mtab").symlink_to("/proc/self/mounts")
    (path / "etc/xen").mkdir(exist_ok=True)
    # dom0 has a fixed share of memory: no balloon between it and a domU that starts.
    (path / "etc/xen/xl.conf").write_text('autoballoon="off"\nclaim_mode=0\n')
    awk = path / "usr/bin/awk"
    if not awk.is_symlink():
        awk.symlink_to("gawk")
    tools = next((path / "usr/lib").glob("xen-[0-9]*/bin"))
    (path / "usr/lib/xen-tools").symlink_to(tools.relative_to(path / "usr/lib"))
    directories = ("dev", "proc", "sys", "run", "tmp", "root", "rig", "var/lib/xen", "var/log/xen", "var/lib/xenstored")
    for directory in directories:
        (path / directory).mkdir(parents=True, exist_ok=True)
    for name, target in (("var/run", "/run"), ("var/lock", "/run/lock")):
        shutil.rmtree(path / name, ignore_errors=True)
        (path / name).unlink(missing_ok=True)
        (path / name).symlink_to(target)
    for machine_part in ("usr/share/initramfs-tools", "usr/share/perl5", "var/cache", "etc/init.d", "etc/systemd"):
        shutil.rmtree(path / machine_part, ignore_errors=True)


def _used(package: Package) -> bool:
    return not package.name.startswith("linux-image-") and not any(
        fnmatch.fnmatch(package.name, pattern) for pattern in recipe.UNUSED
    )


def _one(packages: Sequence[Package], pattern: str) -> Package:
    found = [package for package in packages if fnmatch.fnmatch(package.name, pattern)]
    if len(found) != 1:
        raise RigError(f"{len(found)} packages are named {pattern}, not one: scripts/xen-rig build --refresh")
    return found[0]


def _hypervisor(root: Path) -> Path:
    found = list((root / "boot").glob("xen-*-amd64.gz"))
    if len(found) != 1:
        raise RigError(f"the packages have {len(found)} hypervisors, not one: scripts/xen-rig build --refresh")
    return found[0]


def _unpack(package: Path, into: Path) -> None:
    """Not by dpkg-deb -x, which would replace the link /bin by a directory."""
    with subprocess.Popen([tool("dpkg-deb"), "--fsys-tarfile", package], stdout=subprocess.PIPE) as source:
        excluded = [f"--exclude={pattern}" for pattern in recipe.NOT_UNPACKED]
        command = [tool("tar"), "-x", "-C", str(into), "--no-same-owner", "--keep-directory-symlink", *excluded]
        unpacked = subprocess.run(command, stdin=source.stdout, capture_output=True, check=False)
    if unpacked.returncode or source.returncode:
        package.unlink(missing_ok=True)
        raise RigError(f"{package.name} could not be unpacked and was removed: run the build again")


def _compile_python(root: Root) -> None:
    """Bytecode that Python believes without looking at the source: dom0 could not keep its own."""
    library = root.path / "usr/lib" / f"python{root.python_minor()}"
    compiler = ["-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash"]
    compiler += ["-s", str(root.path), "-p", "/"]
    shared = root.path / "usr/lib/python3"
    trees = [str(tree) for tree in (library, shared) if tree.exists()]
    run([*root.command("usr/bin/python3"), *compiler, *trees], PYTHONHOME=str(root.path / "usr"))


def _write_boot_ramdisk(file: BinaryIO, root: Root, release: str) -> None:
    ramdisk = Ramdisk(file)
    ramdisk.copy(root.path / "usr/bin/busybox", "bin/busybox")
    domu_base.write_modules(ramdisk, root.path, release, recipe.BOOT_MODULES)
    ramdisk.close()
