"""Which packages the rig takes, and their files: an apt of its own, beside the machine's.

It has the machine's archives and keys but an empty list of installed packages, so that it resolves everything that
PACKAGES need, as any user, and never touches the machine's apt. The result is written down; it stays the same, and
with it the artefacts, until PACKAGES or the archives change or `build --refresh` looks for newer versions.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from scripts.xen_rig.errors import RigError
from scripts.xen_rig.host import run, say, tool
from scripts.xen_rig.sources import Entry


@dataclass(frozen=True)
class Package:
    file: str
    """Name of its file in the archive directory."""
    size: int

    @property
    def name(self) -> str:
        return self.file.split("_", 1)[0]

    @property
    def version(self) -> str:
        return self.file.split("_")[1].replace("%3a", ":")


class Apt:
    """Lives in `directory`. `entries`: the machine's archives of the release, see sources.py."""

    def __init__(self, directory: Path, names: Sequence[str], entries: Sequence[Entry]) -> None:
        self._directory = directory
        self._names = tuple(names)
        self._entries = tuple(entries)
        self._question = hashlib.sha256(repr((self._names, self._entries)).encode()).hexdigest()
        self._resolved = directory / f"resolved-{self._question[:16]}.json"

    @property
    def archives(self) -> Path:
        return self._directory / "archives"

    def packages(self, *, refresh: bool = False) -> list[Package]:
        """Everything to unpack: what was written down for this recipe, else what the archives have now."""
        if not refresh and self._resolved.exists():
            return [Package(**fields) for fields in json.loads(self._resolved.read_text())]
        say("asking the archives for package versions")
        self._update()
        packages = self.needs(*self._names)
        answer = json.dumps([asdict(package) for package in packages], indent=1)
        temporary = self._resolved.with_suffix(".new")
        temporary.write_text(answer)
        temporary.replace(self._resolved)
        return packages

    def download(self, packages: Sequence[Package]) -> None:
        """Raises RigError, also when the archives have moved on since `packages` was resolved."""
        missing = [package for package in packages if not self._complete(package)]
        if not missing:
            return
        say(f"downloading {len(missing)} packages ({sum(package.size for package in missing) >> 20} MB)")
        self._get("install", "-y", "--download-only", *self._names)
        for package in missing:
            if not self._complete(package):
                raise RigError(f"{package.file} is not what the archive had before: scripts/xen-rig build --refresh")

    def fetch(self, names: Sequence[str], into: Path) -> list[Path]:
        """Files of packages beside the ones that are unpacked, without what they need. `names`: or NAME=VERSION.

        Raises RigError, also when the archives have moved on.
        """
        into.mkdir()
        self._get("download", *names, directory=into)
        return sorted(into.glob("*.deb"))

    def clean(self, packages: Sequence[Package]) -> None:
        """Forgets the files of other versions."""
        kept = {package.file for package in packages}
        for path in self.archives.glob("*.deb"):
            if path.name not in kept:
                path.unlink()

    def _complete(self, package: Package) -> bool:
        path = self.archives / package.file
        return path.is_file() and path.stat().st_size == package.size

    def _update(self) -> None:
        self._write_configuration(self._entries)
        self._get("update")
        # Only the Release file tells that an archive with the right suite is Debian's own.
        form = "$(REPO_URI)\t$(RELEASE)\t$(ORIGIN)"
        rows = self._get("indextargets", "--format", form, "Created-By: Packages").splitlines()
        debian = {tuple(row.split("\t")[:2]) for row in rows if row.endswith("\tDebian")}
        own = [entry for entry in self._entries if (entry.uri.rstrip("/") + "/", entry.suite) in debian]
        if not own:
            raise RigError("none of the archives in apt's configuration could be read: apt-get update tells why")
        self._write_configuration(own)

    def needs(self, *names: str) -> list[Package]:
        """Everything that packages, named as for `fetch`, need, and they themselves, in an empty system."""
        empty = self._directory / "no-archives"
        (empty / "partial").mkdir(parents=True, exist_ok=True)
        lines = self._get("install", "-y", "--print-uris", "-o", f"Dir::Cache::archives={empty}", *names)
        found = re.findall(r"^'[^']*' (\S+\.deb) (\d+) ", lines, re.MULTILINE)
        return sorted((Package(file, int(size)) for file, size in found), key=lambda each: each.file)

    def _get(self, *arguments: str, directory: Path | None = None) -> str:
        configuration = str(self._configuration.resolve())
        command = [tool("apt-get"), "-qq", *arguments]
        return run(command, directory, APT_CONFIG=configuration, LC_ALL="C.UTF-8")

    @property
    def _configuration(self) -> Path:
        return self._directory / "apt.conf"

    def _write_configuration(self, entries: Sequence[Entry]) -> None:
        here = self._directory
        for name in ("lists/partial", "archives/partial"):
            (here / name).mkdir(parents=True, exist_ok=True)
        (here / "status").touch()
        (here / "sources.list").write_text("".join(entry.line() + "\n" for entry in entries))
        settings = {
            "Dir::State": here,
            "Dir::State::lists": here / "lists",
            "Dir::State::status": here / "status",
            "Dir::Cache": here,
            "Dir::Cache::archives": here / "archives",
            "Dir::Etc::SourceList": here / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::Etc::PreferencesParts": "/dev/null",
            "APT::Architecture": "amd64",
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "",  # the directory is the caller's own, closed to apt's user
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
        }
        text = "".join(f"{name} {json.dumps(str(value))};\n" for name, value in settings.items())
        # What the machine's images do after each apt run (emptying caches, mostly) is not meant for this one.
        hooks = ("APT::Update::Post-Invoke", "APT::Update::Post-Invoke-Success", "DPkg::Post-Invoke")
        self._configuration.write_text(text + "".join(f"#clear {hook};\n" for hook in hooks))


def describe(packages: Sequence[Package]) -> str:
    """Versions that a person asks for."""
    wanted = {"xen-hypervisor": "xen", "linux-image-": "linux", "python3.": "python"}
    seen: dict[str, str] = {}
    for package in packages:
        for prefix, word in wanted.items():
            if package.name.startswith(prefix) and package.name not in ("linux-image-amd64", "xen-hypervisor-common"):
                seen.setdefault(word, package.version)
    return ", ".join(f"{word} {shlex.quote(version)}" for word, version in sorted(seen.items()))
