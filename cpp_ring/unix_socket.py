"""Connecting to a Unix socket that others connect to at the same time."""

from __future__ import annotations

import os
import socket
import time

_RETRY_S = 0.005  # no event tells that there is room in a listener's queue


def connect(unix: socket.socket, path: str | os.PathLike[str], timeout: float) -> None:
    """Connects a new socket, which gets that timeout, in seconds, for all it does later, too.

    A listener's queue may be full (that of xenstored takes one or two connections), and then a socket that does not
    block, as one with a timeout, is refused at once, see unix(7). One that blocks, with SO_SNDTIMEO, would wait; but
    after a signal Python asks whether it is connected, and takes one that never was for one.

    Raises:
        TimeoutError: the queue is still full.
        OSError: there is nobody to connect to.
    """
    unix.settimeout(timeout)
    deadline = time.monotonic() + timeout
    while True:
        try:
            return unix.connect(os.fspath(path))
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise TimeoutError from None
        time.sleep(_RETRY_S)
