"""The device emulator process: one per domain (design: docs/design)."""
