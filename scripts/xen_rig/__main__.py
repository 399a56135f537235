import sys

from scripts.xen_rig.cli import main

sys.exit(main())
