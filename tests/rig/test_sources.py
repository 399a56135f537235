"""Where the rig takes packages from: only Debian's own archives of the running release, in both of apt's formats."""

from pathlib import Path

import pytest

from scripts.xen_rig.errors import RigError
from scripts.xen_rig.sources import Entry, entries, release_of

DEB822 = """\
# the release
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates bookworm-backports
Components: main
  contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/security
Suites: bookworm-security
Components: main

Types: deb
Enabled: no
URIs: http://switched-off.example/debian
Suites: bookworm
Components: main
"""


def write(directory: Path, name: str, text: str) -> None:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_deb822_file_gives_one_entry_for_each_suite_of_the_release(tmp_path: Path) -> None:
    write(tmp_path, "sources.list.d/debian.sources", DEB822)
    key = (("signed-by", "/usr/share/keyrings/debian-archive-keyring.gpg"),)
    assert entries("bookworm", tmp_path) == [
        Entry("http://mirror.example/debian", "bookworm", key),
        Entry("http://mirror.example/debian", "bookworm-updates", key),
        Entry("http://mirror.example/security", "bookworm-security"),
    ]


def test_a_sources_list_gives_the_same(tmp_path: Path) -> None:
    text = """\
    # deb http://commented.example/debian bookworm main
    deb [ arch=amd64 signed-by=/k.gpg ] http://mirror.example/debian bookworm contrib main # the release
    deb-src http://mirror.example/debian bookworm main
    deb http://mirror.example/security bookworm-security main
    deb http://mirror.example/debian bookworm-backports main
    """
    write(tmp_path, "sources.list", text)
    assert [entry.line() for entry in entries("bookworm", tmp_path)] == [
        "deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main",
        "deb [arch=amd64] http://mirror.example/security bookworm-security main",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "deb http://third.example/apt cloud-sdk-bookworm main",
        "deb http://third.example/apt bookworm stable",
        "deb http://third.example/apt nodistro main",
        "deb http://third.example/apt ./",
    ],
)
def test_an_archive_that_is_plainly_a_third_partys_is_left_out(tmp_path: Path, line: str) -> None:
    write(tmp_path, "sources.list", f"deb http://mirror.example/debian bookworm main\n{line}\n")
    assert [entry.uri for entry in entries("bookworm", tmp_path)] == ["http://mirror.example/debian"]


def test_files_that_apt_does_not_read_are_not_read(tmp_path: Path) -> None:
    write(tmp_path, "sources.list.d/debian.sources", DEB822)
    write(tmp_path, "sources.list.d/old.list.disabled", "deb http://disabled.example/debian bookworm main\n")
    assert "disabled" not in "".join(entry.uri for entry in entries("bookworm", tmp_path))


def test_a_machine_without_the_releases_archive_is_told_what_to_do(tmp_path: Path) -> None:
    write(tmp_path, "sources.list", "deb http://mirror.example/debian trixie main\n")
    with pytest.raises(RigError, match=r"no archive with suite bookworm main in .*: add Debian's to its sources\.list"):
        entries("bookworm", tmp_path)


def test_a_key_inside_a_stanza_is_refused_by_the_files_name(tmp_path: Path) -> None:
    key = "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQ==\n"
    write(tmp_path, "sources.list.d/own.sources", DEB822.split("Signed-By")[0] + key)
    with pytest.raises(RigError, match=r"own\.sources: a key inside the file"):
        entries("bookworm", tmp_path)


def test_the_release_is_the_hosts() -> None:
    assert release_of('ID=debian\nVERSION_CODENAME="bookworm"\n') == "bookworm"


def test_another_distribution_is_refused() -> None:
    with pytest.raises(RigError, match="this is 'ubuntu': use a Debian"):
        release_of("ID=ubuntu\nVERSION_CODENAME=noble\n")
