"""`virtio-dm doctor`."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from cpp_ring import xen
from emulator import cpus
from emulator.exit_codes import ExitCode, Failure
from emulator.machine import open_machine, parse_hypervisor
from emulator.text_table import lines

TUN = Path("/dev/net/tun")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `fix`: the command that brings it, empty if there is none or nothing is missing."""

    name: str
    ok: bool
    detail: str
    needed: bool = False
    fix: str = ""


@click.command("doctor")
def command() -> ExitCode:
    """Show what this machine offers and what is missing.

    The exit code is 15 if something is missing that the local hypervisor and its devices cannot do without.
    """
    findings = [check() for check in CHECKS]
    rows = [(_verdict(f), f.name, f.detail, f.fix) for f in findings]
    for line in lines(("", "WHAT", "FOUND", "REMEDY"), rows):
        click.echo(line)
    return ExitCode.NOT_INSTALLED if any(f.needed and not f.ok for f in findings) else ExitCode.OK


def _verdict(finding: Finding) -> str:
    return "ok" if finding.ok else "MISSING" if finding.needed else "missing"


def _kernel() -> Finding:
    system = platform.uname()
    return Finding("kernel", system.system == "Linux", f"{system.system} {system.release} {system.machine}", True)


def _cores() -> Finding:
    available = cpus.allowed()
    cores = cpus.count_cores(available)
    text = f"{cores if cores is not None else 'not known'}, with {len(available)} CPUs for this process"
    enough = (len(available) if cores is None else cores) >= 2
    return Finding("cores", enough, f"{text}; guest and emulator spin on one each")


def _python() -> Finding:
    return Finding("python", sys.version_info >= (3, 11), platform.python_version(), True)


def _engine() -> Finding:
    try:
        from cpp_ring import _core
    except ImportError as error:
        return Finding("engine", False, str(error), True, "scripts/setup, or pip install .")
    return Finding("engine", True, str(getattr(_core, "__file__", "")), True)


def _numpy() -> Finding:
    return _module("numpy", needed=True)


def _compiler() -> Finding:
    return _program("g++", "g++", "builds the engine")


def _local() -> Finding:
    from emulator import local

    if local.running():
        return Finding("local hypervisor", True, f"its broker answers in {local.machine_directory()}", True)
    try:
        open_machine(parse_hypervisor("local:doctor")).open_store().close()
        local.stop("doctor")
        shutil.rmtree(local.machine_directory("doctor"), ignore_errors=True)
    except (Failure, local.MachineError) as error:
        return Finding("local hypervisor", False, str(error), True)
    return Finding("local hypervisor", True, "its broker starts on demand", True)


def _xen() -> Finding:
    try:
        from cpp_ring import _core
    except ImportError:
        return Finding("xen", False, "not known: there is no engine")
    fix = (
        "" if hasattr(_core, "XenHypervisor") else "apt-get install libxen-dev pkg-config, then install virtio-dm again"
    )
    built = "this build has no Xen support" if fix else "this build supports it"
    path = xen.store_path()
    if path is None:
        return Finding("xen", False, f"this is no domain of a Xen; {built}", fix=fix)
    for name in ("evtchn", "gntdev"):
        device = xen.DEVICES / name
        if not os.access(device, os.R_OK | os.W_OK):
            cause = "is not ours to open" if device.exists() else "is not there"
            return Finding("xen", False, f"{device} {cause}; {built}", fix=fix or f"as root: modprobe xen-{name}")
    return Finding("xen", not fix, f"{path}, {xen.DEVICES}/evtchn, gntdev; {built}", fix=fix)


def _tap() -> Finding:
    node = TUN
    if os.access(node, os.R_OK | os.W_OK):
        from devices import net_backends

        if net_backends.may_make_interfaces():
            return Finding("tap", True, f"{node} is there for net devices, and this user may make interfaces")
        if names := net_backends.taps_of_this_user():
            return Finding("tap", True, f"{node} is there for net devices; made for this user: {', '.join(names)}")
        text = f"{node} is there, but this user may not make interfaces; net devices can use socket= instead"
        return Finding("tap", False, text, fix=f"as root: ip tuntap add dev NAME mode tap user {os.geteuid()}")
    if node.exists():
        return Finding("tap", False, f"{node} is not ours to open; net devices can use socket= instead")
    return Finding("tap", False, f"no {node}; net devices can use socket= instead", fix="modprobe tun")


def _ext4() -> Finding:
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return _program("mke2fs", "e2fsprogs", "makes the demo's disk", path)


def _peer() -> Finding:
    return _program("qemu-storage-daemon", "qemu-system-common", "the bench compares with it")


def _plots() -> Finding:
    return _module("matplotlib", fix="pip install matplotlib", use="virtio-dm bench --plot")


def _program(name: str, package: str, use: str, path: str | None = None) -> Finding:
    found = shutil.which(name, path=path)
    return Finding(name, found is not None, found or use, fix="" if found else f"apt-get install {package}")


def _module(name: str, needed: bool = False, fix: str = "scripts/setup, or pip install .", use: str = "") -> Finding:
    found = importlib.util.find_spec(name)
    if found is None:
        return Finding(name, False, use, needed, fix)
    return Finding(name, True, str(found.origin), needed)


CHECKS: tuple[Callable[[], Finding], ...] = (
    _kernel,
    _cores,
    _python,
    _engine,
    _numpy,
    _compiler,
    _local,
    _xen,
    _tap,
    _ext4,
    _peer,
    _plots,
)
