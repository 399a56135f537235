"""`virtio-dm`, or `python -m emulator`."""

import os
import sys


def _fill_standard_descriptors() -> None:
    """Of a caller that closed one: else the next file that is opened would get its number, and what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w")
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w")


def main() -> None:
    """Runs the command line; ends the process with one of the codes in `exit_codes`."""
    # Before numpy is imported anywhere: its linear algebra would start a thread a core, which nobody here uses.
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    _fill_standard_descriptors()
    from emulator.cli import run

    run(sys.argv[1:])


if __name__ == "__main__":
    main()
