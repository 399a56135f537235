"""QEMU's monitor, as far as saving a machine's state needs it: QMP, one JSON object a line (QEMU, interop/qmp-spec)."""

from __future__ import annotations

import json
import shlex
import socket
import time
from pathlib import Path
from typing import Any, Final

from scripts.xen_rig.errors import RigError

TIMEOUT: Final = 120.0
POLL: Final = 0.1
# As fast as the disk, and at the end a halt as long as it takes: nobody talks to the machine meanwhile.
PARAMETERS: Final = {"max-bandwidth": 1 << 40, "downtime-limit": 60_000}


class Monitor:
    """Over a connected socket. Raises RigError for whatever QEMU refuses."""

    def __init__(self, end: socket.socket) -> None:
        end.settimeout(TIMEOUT)
        self._file = end.makefile("rwb")
        self._read("QMP")
        self.command("qmp_capabilities")

    def command(self, name: str, **arguments: Any) -> Any:
        self._file.write(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
        self._file.flush()
        return self._read("return")

    def ask(self, question: str) -> str:
        """The answer to a command for people."""
        answer: str = self.command("human-monitor-command", **{"command-line": question})
        return answer

    def save(self, path: Path) -> None:
        """Writes the state of the running machine, which stops at the end."""
        self.command("migrate-set-parameters", **PARAMETERS)
        self.command("migrate", uri=f"exec:cat >{shlex.quote(str(path))}")
        deadline = time.monotonic() + TIMEOUT
        while (state := self.command("query-migrate"))["status"] != "completed":
            if state["status"] == "failed" or time.monotonic() > deadline:
                raise RigError(f"the machine's state was not saved: {state.get('error-desc', state['status'])}")
            time.sleep(POLL)

    def close(self) -> None:
        self._file.close()

    def _read(self, key: str) -> Any:
        """Skips events."""
        try:
            while line := self._file.readline():
                answer = json.loads(line)
                if "error" in answer:
                    raise RigError(f"QEMU refused: {answer['error']['desc']}")
                if key in answer:
                    return answer[key]
        except TimeoutError as error:
            raise RigError(f"QEMU's monitor did not answer in {TIMEOUT:.0f} s") from error
        raise RigError("QEMU ended while its monitor was asked")
