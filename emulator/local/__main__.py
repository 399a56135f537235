"""`python -m emulator.local`: the broker of one machine."""

import sys

from emulator.local import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
