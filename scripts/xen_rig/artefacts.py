"""Everything that a machine is booted from, made if it is not in the cache."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from scripts.xen_rig import cache, guest_module, recipe, root, site_packages
from scripts.xen_rig.host import require_tools
from scripts.xen_rig.packages import Apt
from scripts.xen_rig.sources import entries, release_of


@dataclass(frozen=True)
class Artefacts:
    root: Path
    """Directory of the root artefact, see root.py."""
    libraries: Path
    site: Path
    versions: str


def make(*, refresh: bool = False) -> Artefacts:
    """Takes no time if all is there. `refresh`: asks the archives for newer packages first."""
    require_tools()
    place = cache.directory()
    wanted = (*recipe.PACKAGES, os.environ.get("VIRTIO_DM_RIG_KERNEL") or recipe.KERNEL)
    with cache.lock(place, "apt"):
        apt = Apt(place / "apt", wanted, entries(release_of(Path("/etc/os-release").read_text())))
        packages = apt.packages(refresh=refresh)

    def make_root(out: Path) -> None:
        apt.download(packages)
        root.make(out, apt.archives, packages)
        apt.clean(packages)

    identity = cache.key(packages, files=cache.sources(*root.INGREDIENTS))
    made = cache.artefact(place, "root", identity, make_root)
    about = json.loads((made / "about.json").read_text())
    environment = site_packages.Environment()
    environment.require(about["python"])
    return Artefacts(
        root=made,
        libraries=site_packages.libraries(place, environment),
        site=site_packages.site(place, environment, guest_module.make(place, apt, packages)),
        versions=about["versions"],
    )
