from tests.emulator.machines import machine, whole_machine
from tests.guest.conftest import directory, dom0, domain, emulator, toolstack

__all__ = ["directory", "dom0", "domain", "emulator", "machine", "toolstack", "whole_machine"]
