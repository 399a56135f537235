"""Reading and changing the tree as one domain, all or nothing. A request outside a transaction is one by itself."""

from __future__ import annotations

import errno
from typing import NamedTuple

from emulator.local.errors import Refused
from emulator.local.limits import Limits
from emulator.local.tree import OWNER, READ, WRITE, Node, Perms, find, parent_of, replace, rights, walk


class Change(NamedTuple):
    """What watches are told of."""

    path: str
    exact: bool
    """Only watches on this very path fire: it went with an ancestor, of which the others are told."""
    readers: list[Perms]
    """Whoever may read by one of these may know."""


class Tree:
    """The committed tree, and how many nodes each domain owns."""

    def __init__(self) -> None:
        self.generation = 1
        self.root = Node(b"", ((0, 0),), {}, 1)
        self.owned: dict[int, int] = {0: 1}

    def next_generation(self) -> int:
        self.generation += 1
        return self.generation


class Transaction:
    """`domid`'s view of the tree as it was when this was made, with its own changes. Methods raise Refused."""

    __slots__ = (
        "_accessed",
        "_domid",
        "_events",
        "_limits",
        "_modified",
        "_owned",
        "_root",
        "_start",
        "_tree",
        "_whole",
    )

    def __init__(self, tree: Tree, domid: int, limits: Limits, whole: bool = False) -> None:
        """`whole`: over once the first request is, so that nothing can come in between."""
        self._tree = tree
        self._domid = domid
        self._limits = limits
        self._whole = whole
        self._start = self._root = tree.root
        self._accessed: set[str] = set()
        self._modified: dict[str, None] = {}
        self._events: dict[str, bool] = {}  # path -> exact
        self._owned: dict[int, int] = {}  # domid -> how many more nodes

    def read(self, path: str) -> bytes:
        return self._checked(path, READ).value

    def directory(self, path: str) -> list[str]:
        return list(self._checked(path, READ).children)

    def perms(self, path: str) -> Perms:
        return self._checked(path, READ).perms

    def write(self, path: str, value: bytes) -> None:
        try:
            node = self._checked(path, WRITE)
        except Refused as refused:
            if refused.errno != errno.ENOENT:
                raise
            self._create(path, value)
        else:
            self._put(path, Node(value, node.perms, node.children, self._tree.next_generation()))
        self._events[path] = False

    def mkdir(self, path: str) -> None:
        try:
            self._checked(path, WRITE)
        except Refused as refused:
            if refused.errno != errno.ENOENT:
                raise
            self._create(path, b"")
            self._events[path] = False

    def rm(self, path: str) -> None:
        try:
            node = self._checked(path, WRITE)
        except Refused as refused:
            if refused.errno == errno.ENOENT and path != "/" and self._get(parent_of(path)) is not None:
                return
            raise
        if path == "/":
            raise Refused(errno.EINVAL)
        doomed = list(walk(path, node))
        for below, _ in doomed:
            self._access(below)
        for below, gone in doomed:
            self._modified[below] = None
            self._events[below] = below != path and self._events.get(below, True)
            self._count(gone.owner, -1)
        self._root = replace(self._root, path, None)
        parent = self._get(parent_of(path))
        assert parent is not None
        self._put(
            parent_of(path), Node(parent.value, parent.perms, parent.children, self._tree.next_generation()), True
        )

    def set_perms(self, path: str, perms: Perms) -> None:
        if self._domid != 0 and len(perms) > self._limits.node_perms:
            raise Refused(errno.ENOSPC)
        node = self._checked(path, WRITE | OWNER)
        if self._domid != 0 and perms[0][0] != node.owner:
            raise Refused(errno.EPERM)
        self._put(path, Node(node.value, perms, node.children, self._tree.next_generation()))
        self._count(node.owner, -1)
        self._count(perms[0][0], 1)
        self._events[path] = False

    def commit(self) -> list[Change]:
        """Makes the changes everybody's; returns them. EAGAIN: what was seen is no longer so."""
        tree, before = self._tree, self._tree.root
        root = self._root if before is self._start else self._rebase(before)
        if self._domid != 0 and self._owned.get(self._domid, 0) > 0:
            self._check_nodes(0)
        for domid, count in self._owned.items():
            tree.owned[domid] = tree.owned.get(domid, 0) + count
        tree.root = root
        return [Change(path, exact, _readers(path, before, root)) for path, exact in self._events.items()]

    def _rebase(self, live: Node) -> Node:
        """The live tree with this transaction's changes, if nothing it looked at has changed there."""
        for path in self._accessed:
            seen, now = find(self._start, path), find(live, path)
            if (seen.generation if seen else 0) != (now.generation if now else 0):
                raise Refused(errno.EAGAIN)
        for path in sorted(self._modified, key=len):  # parents first
            mine, theirs = find(self._root, path), find(live, path)
            if mine is not None:
                children = theirs.children if theirs is not None else {}
                live = replace(live, path, Node(mine.value, mine.perms, children, self._tree.next_generation()))
            elif theirs is not None:
                live = replace(live, path, None)
        return live

    def _access(self, path: str) -> None:
        if self._whole or path in self._accessed:
            return
        if self._domid != 0 and len(self._accessed) >= self._limits.transaction_nodes:
            raise Refused(errno.ENOSPC)
        self._accessed.add(path)

    def _get(self, path: str) -> Node | None:
        self._access(path)
        return find(self._root, path)

    def _nearest(self, path: str) -> tuple[str, Node]:
        """The closest ancestor that is there."""
        while True:
            path = parent_of(path)
            node = self._get(path)
            if node is not None:
                return path, node

    def _checked(self, path: str, wanted: int) -> Node:
        node = self._get(path)
        if node is None:
            # Who may not look into the parent is not told that nothing is there.
            _, ancestor = self._nearest(path)
            raise Refused(errno.ENOENT if rights(ancestor.perms, self._domid) & wanted else errno.EACCES)
        if rights(node.perms, self._domid) & wanted != wanted:
            raise Refused(errno.EACCES)
        return node

    def _create(self, path: str, value: bytes) -> None:
        """A node and its missing parents; each inherits, and a domU owns what it makes."""
        above, parent = self._nearest(path)
        perms = parent.perms if self._domid == 0 else ((self._domid, parent.perms[0][1]), *parent.perms[1:])
        names = path[len(above.rstrip("/")) + 1 :].split("/")
        if self._domid != 0:
            self._check_nodes(len(names))
        generation = self._tree.next_generation()
        node = Node(value, perms, {}, generation)
        self._check_size(node)
        for name in reversed(names[1:]):
            node = Node(b"", perms, {name: node}, generation)
            self._check_size(node)
        parent = Node(parent.value, parent.perms, {**parent.children, names[0]: node}, generation)
        self._put(above, parent)
        self._count(perms[0][0], len(names))
        made = above.rstrip("/")
        for name in names:
            made += "/" + name
            self._modified[made] = None

    def _put(self, path: str, node: Node, shrunk: bool = False) -> None:
        if not shrunk:
            self._check_size(node)
        self._root = replace(self._root, path, node)
        self._modified[path] = None

    def _check_size(self, node: Node) -> None:
        if self._domid != 0 and node.size > self._limits.node_size:
            raise Refused(errno.ENOSPC)

    def _check_nodes(self, more: int) -> None:
        owned = self._tree.owned.get(self._domid, 0) + self._owned.get(self._domid, 0)
        if owned + more > self._limits.nodes:
            raise Refused(errno.ENOSPC)

    def _count(self, owner: int, more: int) -> None:
        self._owned[owner] = self._owned.get(owner, 0) + more


def _readers(path: str, before: Node, after: Node) -> list[Perms]:
    """Who may read the node before or after the change, or its parent, may know of it; nobody if it never was."""
    nodes = [node for node in (find(before, path), find(after, path)) if node is not None]
    if nodes and path != "/":
        above = find(after, parent_of(path)) or find(before, parent_of(path))
        nodes += [above] if above is not None else []
    return [node.perms for node in nodes]
