"""Watches: who is told of which change."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Protocol

from emulator.local.errors import Refused
from emulator.local.limits import Limits
from emulator.local.transaction import Change
from emulator.local.tree import READ, canonical, rights

SPECIAL = ("@introduceDomain", "@releaseDomain")


class Watcher(Protocol):
    """A connection that may have watches."""

    @property
    def domid(self) -> int: ...
    def tell(self, path: str, watch: Watch) -> None:
        """Queues an event; `path` is what the watcher shall see."""


class Watch:
    """`given`: the path as the watcher wrote it."""

    __slots__ = ("given", "path", "token", "watcher")

    def __init__(self, watcher: Watcher, path: str, given: str, token: str) -> None:
        self.watcher = watcher
        self.path = path
        self.given = given
        self.token = token

    def shown(self, path: str) -> str:
        """A path below the watch in the watcher's terms: relative if the watch is."""
        return path if self.given == self.path else (self.given + path[len(self.path) :])


class Watches:
    """All watches of a store."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._by_path: dict[str, dict[tuple[Watcher, str], Watch]] = {}
        self._counts: dict[int, int] = {}

    def add(self, watcher: Watcher, given: str, token: str) -> None:
        """Raises Refused: EINVAL (path), EEXIST, ENOSPC. Fires at once."""
        path = _watched_path(watcher, given)
        here = self._by_path.get(path, {})
        if (watcher, token) in here:
            raise Refused(errno.EEXIST)
        count = self._counts.get(watcher.domid, 0)
        if watcher.domid != 0 and count >= self._limits.watches:
            raise Refused(errno.ENOSPC)
        self._counts[watcher.domid] = count + 1
        watch = Watch(watcher, path, given, token)
        self._by_path.setdefault(path, here)[watcher, token] = watch
        watcher.tell(given, watch)

    def remove(self, watcher: Watcher, given: str, token: str) -> None:
        """Raises Refused ENOENT."""
        path = _watched_path(watcher, given)
        if (watcher, token) not in self._by_path.get(path, {}):
            raise Refused(errno.ENOENT)
        self._drop(path, watcher, token)

    def remove_all(self, watcher: Watcher) -> None:
        mine = [(path, key) for path, here in self._by_path.items() for key in here if key[0] is watcher]
        for path, (_, token) in mine:
            self._drop(path, watcher, token)

    def fire(self, changes: list[Change]) -> None:
        """Tells everybody who watches a changed path or an ancestor of it, and may know."""
        for change in changes:
            for watch in self._matching(change):
                domid = watch.watcher.domid
                if any(rights(perms, domid) & READ for perms in change.readers):
                    watch.watcher.tell(watch.shown(change.path), watch)

    def fire_special(self, name: str) -> None:
        """@introduceDomain or @releaseDomain; for dom0 alone, as xenstored has it by default."""
        for watch in list(self._by_path.get(name, {}).values()):
            if watch.watcher.domid == 0:
                watch.watcher.tell(name, watch)

    def _matching(self, change: Change) -> Iterator[Watch]:
        yield from self._by_path.get(change.path, {}).values()
        if not change.exact and change.path != "/":
            end = len(change.path)
            while (end := change.path.rfind("/", 0, end)) > 0:
                yield from self._by_path.get(change.path[:end], {}).values()
            yield from self._by_path.get("/", {}).values()

    def _drop(self, path: str, watcher: Watcher, token: str) -> None:
        here = self._by_path[path]
        del here[watcher, token]
        if not here:
            del self._by_path[path]
        self._counts[watcher.domid] -= 1


def _watched_path(watcher: Watcher, given: str) -> str:
    if given.startswith("@"):
        if given not in SPECIAL:
            raise Refused(errno.EINVAL)
        return given
    return canonical(given, watcher.domid)
