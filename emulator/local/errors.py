"""The two ways to say no: to a client, and to a person."""

from __future__ import annotations

import errno


class Refused(Exception):
    """A request that gets an error for an answer."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode.get(number, str(number)))
        self.errno = number


class MachineError(OSError):
    """A local machine cannot be used; `errno` says why and the text what to do.

    EBUSY: it has a broker already. ENOENT: it has none, or no such domain. EACCES: the directory is not ours alone.
    EEXIST: there is such a domain. ETIMEDOUT, ECONNRESET: its broker does not answer. EINVAL, ENAMETOOLONG: the name.
    """

    def __str__(self) -> str:
        return str(self.strerror)
