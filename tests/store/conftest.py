from tests.local.machines import machine, process_machine, runtime

__all__ = ["machine", "process_machine", "runtime"]
