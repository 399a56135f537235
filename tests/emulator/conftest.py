from tests.emulator.machines import machine, whole_machine

__all__ = ["machine", "whole_machine"]
