from tests.guest.conftest import directory, dom0, domain, emulator, toolstack

__all__ = ["directory", "dom0", "domain", "emulator", "toolstack"]
