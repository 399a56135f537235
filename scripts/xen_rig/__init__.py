"""The rig: a real Xen with a Debian dom0 and domUs in QEMU's software emulation. See docs/rig.md."""
