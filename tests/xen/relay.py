"""Standard input and output of `python3 -m guest agent` in a domU of the rig: `python3 -m tests.xen.relay DOMID`.

What `--guest` of the bench starts where there is no ssh. The domU's agent takes one client at a time: whoever had it
must have let go.
"""

from __future__ import annotations

import os
import sys
import threading

from scripts.xen_rig.domu_agent.client import Client, DomuGone, RemoteProcess

FOREVER = 86400.0


def main(domid: int) -> int:
    """Its exit code."""
    client = Client(domid)
    try:
        process = client.start(["python3", "-m", "guest", "agent"])
        threading.Thread(target=_feed, args=(process,), daemon=True).start()
        while line := process.read_line(FOREVER):
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
        return process.wait()
    except DomuGone as error:
        print(f"relay: {error}", file=sys.stderr)
        return 1
    finally:
        client.close()


def _feed(process: RemoteProcess) -> None:
    while data := os.read(0, 1 << 16):
        process.write(data)
    process.close_stdin()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
