"""The store's tree. Nodes never change: a write makes a new root, so a transaction's snapshot is the old root."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from typing import Final

from cpp_ring.xs_wire import REL_PATH_MAX
from emulator.local.errors import Refused

READ: Final = 1
WRITE: Final = 2
OWNER: Final = 4

Perms = tuple[tuple[int, int], ...]
"""(domid, flags) each: first the owner and what everybody else may, then exceptions."""

_LETTERS: Final = {"n": 0, "r": READ, "w": WRITE, "b": READ | WRITE}
_FLAGS: Final = {flags: letter for letter, flags in _LETTERS.items()}
_HOME: Final = re.compile(r"/local/domain/[0-9]{1,5}/")
_CHARACTERS: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-/_@")


class Node:
    """One record. `generation` changes with the value, the permissions and the set of children, not below them."""

    __slots__ = ("children", "generation", "perms", "value")

    def __init__(self, value: bytes, perms: Perms, children: dict[str, Node], generation: int) -> None:
        self.value = value
        self.perms = perms
        self.children = children
        self.generation = generation

    @property
    def owner(self) -> int:
        return self.perms[0][0]

    @property
    def size(self) -> int:
        """Bytes of the value and of the children's names, as the wire has them."""
        return len(self.value) + sum(map(len, self.children)) + len(self.children)


def find(root: Node, path: str) -> Node | None:
    """The node at a canonical path."""
    node = root
    if path != "/":
        for name in path[1:].split("/"):
            child = node.children.get(name)
            if child is None:
                return None
            node = child
    return node


def replace(root: Node, path: str, node: Node | None) -> Node:
    """The tree with `node` at `path`, whose parent is there; None takes it away."""
    if path == "/":
        assert node is not None
        return node
    names = path[1:].split("/")
    spine = [root]
    for name in names[:-1]:
        spine.append(spine[-1].children[name])
    for parent, name in zip(reversed(spine), reversed(names), strict=True):
        children = dict(parent.children)
        if node is None:
            del children[name]
        else:
            children[name] = node
        node = Node(parent.value, parent.perms, children, parent.generation)
    assert node is not None
    return node


def walk(path: str, node: Node) -> Iterator[tuple[str, Node]]:
    """A node and everything below it, parents first. Paths may be 1,000 names deep: no recursion."""
    todo = [(path, node)]
    while todo:
        path, node = todo.pop()
        yield path, node
        prefix = path if path != "/" else ""
        todo.extend((f"{prefix}/{name}", child) for name, child in node.children.items())


def parent_of(path: str) -> str:
    return path[: path.rindex("/")] or "/"


def canonical(path: str, domid: int) -> str:
    """The absolute form of a path as domain `domid` gave it. Raises Refused EINVAL."""
    if not _CHARACTERS.issuperset(path) or path.startswith("@"):
        raise Refused(errno.EINVAL)
    absolute = path if path.startswith("/") else f"/local/domain/{domid}/{path}"
    home = _HOME.match(absolute)
    if len(absolute) - (home.end() if home else 0) > REL_PATH_MAX:
        raise Refused(errno.EINVAL)
    if "//" in absolute or (absolute.endswith("/") and absolute != "/"):
        raise Refused(errno.EINVAL)
    return absolute


def rights(perms: Perms, domid: int) -> int:
    """What a domain may do with a node."""
    if domid in (0, perms[0][0]):
        return READ | WRITE | OWNER
    for other, flags in perms[1:]:
        if other == domid:
            return flags
    return perms[0][1]


def parse_perms(strings: list[str]) -> Perms:
    """From the wire's form, as in ["n0", "r1"]. Raises Refused EINVAL."""
    perms = []
    for string in strings:
        letter, number = string[:1], string[1:]
        if letter not in _LETTERS or not (0 < len(number) <= 5 and number.isascii() and number.isdigit()):
            raise Refused(errno.EINVAL)
        if int(number) > 0xFFFF:
            raise Refused(errno.EINVAL)
        perms.append((int(number), _LETTERS[letter]))
    if not perms:
        raise Refused(errno.EINVAL)
    return tuple(perms)


def format_perms(perms: Perms) -> list[str]:
    return [f"{_FLAGS[flags]}{domid}" for domid, flags in perms]
