"""What the rig is made of. A change here, or in a module that `cache.py` names, makes new artefacts."""

from __future__ import annotations

from typing import Final

PACKAGES: Final = (
    # Xen: hypervisor, tools, libraries of one version
    "xen-system-amd64",
    "xen-utils-common",
    "xenstore-utils",
    # dom0's user space
    "base-files",
    "bash",
    "busybox-static",
    "coreutils",
    "dash",
    "diffutils",
    "e2fsprogs",
    "findutils",
    "gawk",
    "grep",
    "gzip",
    "hostname",
    "iproute2",
    "kmod",
    "libc-bin",
    "libstdc++6",
    "mount",
    "procps",
    "python3",
    "sed",
    "strace",
    "tar",
    "util-linux",
)

KERNEL: Final = "linux-image-amd64"
"""Of dom0 and the domUs, if VIRTIO_DM_RIG_KERNEL names no other."""

UNUSED: Final = (
    "adduser", "cpio", "debconf", "dpkg", "grub*", "init-system-helpers", "initramfs-tools*", "install-info",
    "klibc-utils", "libfile-find-rule-perl", "libklibc", "liblocale-gettext-perl", "libnumber-compare-perl",
    "libperl5*", "libsemanage*", "libsepol*", "libtext-glob-perl", "linux-base", "logsave", "media-types", "os-prober",
    "passwd", "perl*", "sensible-utils", "ucf", "udev", "xen-hypervisor-common",
)  # fmt: skip
"""Dependencies of installation scripts, which never run here: packages are unpacked, not installed."""

NOT_UNPACKED: Final = (
    "./usr/share/doc", "./usr/share/man", "./usr/share/info", "./usr/share/locale", "./usr/share/lintian",
    "./usr/share/bash-completion", "./usr/share/doc-base", "./lib/systemd", "./lib/udev", "./usr/lib/xen-*/boot",
    "./usr/lib/python3*/test", "./usr/lib/python3*/idlelib", "./usr/lib/python3*/lib2to3",
    "./usr/lib/python3*/pydoc_data", "./usr/lib/x86_64-linux-gnu/gconv",
)  # fmt: skip

BOOT_MODULES: Final = ("virtio_pci", "virtio_blk", "ext4", "crc32c_generic", "overlay")
"""Before the root is there, in dom0's first ramdisk."""
DOM0_MODULES: Final = (
    "virtio_console", "9pnet_virtio", "9p", "xenfs", "xen-evtchn", "xen-gntdev", "xen-gntalloc", "xen-privcmd",
    "xen-blkback", "xen-netback", "tun", "bridge", "veth", "dummy", "loop",
)  # fmt: skip
DOMU_MODULES: Final = (
    "xenfs", "xen-evtchn", "xen-gntdev", "xen-gntalloc", "xen-privcmd", "xen-blkfront", "xen-netfront", "virtio",
    "virtio_ring", "virtio_blk", "virtio_net", "virtio_console", "virtio-rng", "virtio_input", "tun", "bridge", "dummy",
    "ext4", "crc32c_generic", "overlay",
)  # fmt: skip

DOMU_PROGRAMS: Final = ("usr/bin/python3", "usr/bin/xenstore", "usr/sbin/mke2fs")
DOMU_LIBRARIES: Final = (
    "libxenstore", "libxenevtchn", "libxengnttab", "libxenvchan", "libxentoolcore", "libxentoollog", "libstdc++",
    "libgcc_s",
)  # fmt: skip
"""Beginnings of the names of libraries that the domUs get besides those their programs need."""
DOMU_WITHOUT: Final = (
    "_sqlite3", "_ssl", "_hashlib", "_tkinter", "_codecs_", "_dbm", "_gdbm", "nis", "readline", "_curses", "_test",
    "_crypt",
)  # fmt: skip
"""Beginnings of the names of Python's extensions that the domUs do without."""
