"""The rig's own writers and readers of files: ramdisks, kernels, modules."""

import io
import lzma
import os
import struct
import zlib
from pathlib import Path

import pytest

from scripts.xen_rig import domu_config, kernel, modules, ramdisk
from scripts.xen_rig.cpio import Ramdisk
from scripts.xen_rig.errors import RigError


def entries(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Name to mode and content, of archives that may be appended to each other."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while at < len(archive):
        if archive[at : at + 4] == bytes(4):
            at += 4
            continue
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        start = at + 110
        name = archive[start : start + fields[11] - 1].decode()
        data = -(-(start + fields[11]) // 4) * 4
        found[name] = (fields[1], archive[data : data + fields[6]])
        at = -(-(data + fields[6]) // 4) * 4
    return found


def test_a_ramdisk_has_files_links_and_their_parents(tmp_path: Path) -> None:
    (tmp_path / "tree/deep").mkdir(parents=True)
    (tmp_path / "tree/deep/program").write_bytes(b"abc")
    (tmp_path / "tree/deep/program").chmod(0o755)
    (tmp_path / "tree/link").symlink_to("deep/program")
    file = io.BytesIO()
    ramdisk = Ramdisk(file)
    ramdisk.copy(tmp_path / "tree", "usr/tree")
    ramdisk.file("etc/name", b"x" * 5)
    ramdisk.close()
    found = entries(file.getvalue())
    assert list(found)[:2] == ["usr", "usr/tree"]
    assert found["usr/tree/deep/program"] == (0o100755, b"abc")
    assert found["usr/tree/link"] == (0o120777, b"deep/program")
    assert found["etc/name"] == (0o100644, b"xxxxx")


def test_ramdisks_can_be_appended(tmp_path: Path) -> None:
    whole = b""
    for name in ("one", "two"):
        file = io.BytesIO()
        ramdisk = Ramdisk(file)
        ramdisk.file(f"etc/{name}", name.encode())
        ramdisk.close()
        assert len(file.getvalue()) % 512 == 0
        whole += file.getvalue()
    assert {"etc/one", "etc/two"} <= set(entries(whole))


def test_dom0s_ramdisk_has_the_spare_domus_and_what_their_own_begins_with(tmp_path: Path) -> None:
    (tmp_path / "boot.cpio").touch()
    for cpus in (1, 2):
        found = entries(ramdisk.content(tmp_path / "boot.cpio", cpus))
        for name, spare in domu_config.spares(cpus).items():
            text = found[f"rig/spares/{name}"][1].decode()
            assert f'type="{spare.kind}"\nname="{name}"\n' in text
            assert f"{'driver' if spare.emulator else 'domu'}.cpio" in text
            assert f'cpus="{cpus - 1}"\n' in text
    theirs = entries(found["rig/domu.cpio"][1])
    assert {"init", "usr/sbin/poweroff", "rig/agent/scripts/xen_rig/domu_agent/__main__.py"} <= set(theirs)


def bzimage(payload: bytes, setup_sectors: int = 2) -> bytes:
    image = bytearray((setup_sectors + 1) * 512)
    image[0x1F1] = setup_sectors
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 16, len(payload))
    return bytes(image) + bytes(16) + payload


@pytest.mark.parametrize(
    "compress", [lambda data: lzma.compress(data, lzma.FORMAT_XZ), lambda data: zlib.compress(data, wbits=31)]
)
def test_a_kernel_is_taken_out_of_its_image(compress: object) -> None:
    assert callable(compress)
    elf = b"\x7fELF" + os.urandom(1000)
    assert kernel.vmlinux(bzimage(compress(elf) + struct.pack("<I", len(elf)))) == elf


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"MZ" + bytes(2000), "is no bzImage"),
        (bzimage(b"BZh9 not known"), "compressed in an unknown way"),
        (bzimage(zlib.compress(b"hello", wbits=31)), "not with an ELF header"),
    ],
)
def test_what_is_no_kernel_is_said(image: bytes, reason: str) -> None:
    with pytest.raises(RigError, match=reason):
        kernel.vmlinux(image)


def test_modules_come_with_what_they_depend_on(tmp_path: Path) -> None:
    for name, needed in (("virtio-rng", "rng_core,virtio"), ("rng-core", ""), ("virtio", ""), ("other", "")):
        (tmp_path / f"{name}.ko").write_bytes(b"\x7fELF\0license=GPL\0depends=" + needed.encode() + b"\0")
    assert [path.name for path in modules.closure(["virtio_rng"], tmp_path)] == [
        "rng-core.ko",
        "virtio-rng.ko",
        "virtio.ko",
    ]


def test_a_module_that_the_kernel_has_built_in_is_not_looked_for(tmp_path: Path) -> None:
    (tmp_path / "modules.builtin").write_text("kernel/drivers/virtio/virtio-ring.ko\nkernel/lib/crc32.ko\n")
    (tmp_path / "virtio_blk.ko").write_bytes(b"\x7fELF\0license=GPL\0depends=virtio_ring\0")
    assert modules.closure(["virtio-blk", "crc32"], tmp_path) == [tmp_path / "virtio_blk.ko"]


def test_compressed_modules_become_plain_ones(tmp_path: Path) -> None:
    directory = tmp_path / "lib/modules/6.12/kernel"
    directory.mkdir(parents=True)
    (directory / "loop.ko.xz").write_bytes(lzma.compress(b"\x7fELF"))
    modules.decompress(tmp_path)
    assert [path.name for path in directory.iterdir()] == ["loop.ko"]
    assert (directory / "loop.ko").read_bytes() == b"\x7fELF"


def test_a_module_that_was_not_unpacked_is_named(tmp_path: Path) -> None:
    with pytest.raises(RigError, match="kernel module xen_evtchn is in none of DIRECTORIES"):
        modules.closure(["xen-evtchn"], tmp_path)
