"""Where this machine has its Debian packages from: the entries of apt's configuration that the rig may use.

Read from both of apt's formats, `sources.list` (one line an entry) and deb822 (`.sources`, one stanza an entry), see
sources.list(5). Kept are binary packages of the running release's own suites with component `main`; that an entry is
no third party's is known only from its Release file, so `packages.py` asks apt for that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scripts.xen_rig.errors import RigError

KEPT_OPTIONS: Final = ("signed-by", "trusted", "check-valid-until")
"""What decides whether apt believes the archive. Everything else (languages, architectures) the rig sets itself."""


@dataclass(frozen=True)
class Entry:
    """One suite of one archive."""

    uri: str
    suite: str
    options: tuple[tuple[str, str], ...] = ()

    def line(self) -> str:
        """As a line of sources.list."""
        options = " ".join(f"{name}={value}" for name, value in (("arch", "amd64"), *self.options))
        return f"deb [{options}] {self.uri} {self.suite} main"


def release_of(os_release: str) -> str:
    """Codename out of the text of /etc/os-release.

    Raises RigError where it is not Debian's: the rig takes the host's release, so that libraries fit.
    """
    fields = dict(line.split("=", 1) for line in os_release.splitlines() if "=" in line)
    name, codename = fields.get("ID", "?").strip('"'), fields.get("VERSION_CODENAME", "").strip('"')
    if name != "debian" or not codename:
        raise RigError(f"the rig is built of the host's own Debian packages and this is {name!r}: use a Debian 12 host")
    return codename


def suites_of(codename: str) -> tuple[str, ...]:
    """Of the release itself and its updates, without backports and proposed updates."""
    return (codename, f"{codename}-updates", f"{codename}-security")


def one_line_entries(text: str) -> Iterator[tuple[str, str, list[str], dict[str, str]]]:
    """(uri, suite, components, options) of each `deb` line."""
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^\]]*)\]\s*)?(\S+)\s+(\S+)([^#]*)", line)
        if match:
            options = dict(word.split("=", 1) for word in (match[1] or "").split() if "=" in word)
            yield match[2], match[3], match[4].split(), {name.lower(): value for name, value in options.items()}


def deb822_entries(text: str, path: Path) -> Iterator[tuple[str, str, list[str], dict[str, str]]]:
    """The same of each stanza, one for each pair of URI and suite. `path`: for a key that stands in the stanza."""
    for stanza in re.split(r"\n\s*\n", re.sub(r"(?m)^#.*\n?", "", text)):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line[:1] in " \t":
                fields[name] = fields.get(name, "") + "\n" + line.strip()
            elif ":" in line:
                name, value = line.split(":", 1)
                name = name.strip().lower()
                fields[name] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        if "\n" in fields.get("signed-by", ""):
            raise RigError(f"{path}: a key inside the file is not supported: store it in a file and name that one")
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield uri, suite, fields.get("components", "").split(), fields


def entries(codename: str, etc_apt: Path = Path("/etc/apt")) -> list[Entry]:
    """What the configuration below `etc_apt` has of release `codename`. Raises RigError if that is nothing."""
    wanted = suites_of(codename)
    found: list[Entry] = []
    parts = sorted((etc_apt / "sources.list.d").glob("*"))
    for path in [etc_apt / "sources.list", *parts]:
        if path.suffix not in (".list", ".sources") or not path.is_file():
            continue
        text = path.read_text()
        rows = deb822_entries(text, path) if path.suffix == ".sources" else one_line_entries(text)
        for uri, suite, components, options in rows:
            if suite in wanted and "main" in components:
                kept = tuple((name, options[name]) for name in KEPT_OPTIONS if name in options)
                entry = Entry(uri, suite, tuple((name, re.sub(r"\s+", ",", value)) for name, value in kept))
                if entry not in found:
                    found.append(entry)
    if not any(entry.suite == codename for entry in found):
        raise RigError(f"no archive with suite {codename} main in {etc_apt}: add Debian's to its sources.list")
    return found
