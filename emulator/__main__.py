"""`virtio-dm`, or `python -m emulator`."""

import os
import sys


def main() -> None:
    """Runs the command line; ends the process with one of the codes in `exit_codes`."""
    # Before numpy is imported anywhere: its linear algebra would start a thread a core, which nobody here uses.
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    from emulator.cli import run

    run(sys.argv[1:])


if __name__ == "__main__":
    main()
