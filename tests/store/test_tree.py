"""The tree behind the store against a model that is too simple to be wrong: a dict, copied for every transaction."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.local.errors import Refused
from emulator.local.limits import Limits
from emulator.local.transaction import Transaction, Tree
from emulator.local.tree import find, parse_perms, walk

PATHS = ["/a", "/b", "/a/x", "/a/y", "/a/x/1", "/a/x/2", "/b/x"]

Step = tuple[str, str]
"""(operation, path)"""

STEPS = st.lists(
    st.tuples(st.sampled_from(["write", "rm", "mkdir", "perms", "read"]), st.sampled_from(PATHS)), max_size=8
)


def apply(view: Transaction, step: Step, value: bytes) -> None:
    operation, path = step
    with tolerated(errno.ENOENT):
        match operation:
            case "write":
                view.write(path, value)
            case "rm":
                view.rm(path)
            case "mkdir":
                view.mkdir(path)
            case "perms":
                view.set_perms(path, parse_perms(["r0"]))
            case "read":
                view.read(path)


@contextmanager
def tolerated(number: int) -> Iterator[None]:
    """Passes over a refusal with this errno."""
    try:
        yield
    except Refused as refused:
        if refused.errno != number:
            raise


def model_apply(nodes: dict[str, tuple[bytes, str]], step: Step, value: bytes) -> None:
    operation, path = step
    parents = [path[:at] for at in range(1, len(path)) if path[at] == "/"]
    match operation:
        case "write" | "mkdir":
            perms = "n0"
            for parent in parents:
                perms = nodes.setdefault(parent, (b"", perms))[1]
            old = nodes.get(path, (b"", perms))
            nodes[path] = (value, old[1]) if operation == "write" else old
        case "rm":
            for gone in [node for node in nodes if node == path or node.startswith(path + "/")]:
                del nodes[gone]
        case "perms":
            if path in nodes:
                nodes[path] = (nodes[path][0], "r0")


def dump(tree: Tree) -> dict[str, tuple[bytes, str]]:
    letters = {0: "n0", 1: "r0"}
    return {path: (node.value, letters[node.perms[0][1]]) for path, node in walk("/", tree.root) if path != "/"}


def node_count(tree: Tree) -> int:
    return sum(1 for _ in walk("/", tree.root))


@settings(max_examples=200)
@given(first=STEPS, second=STEPS, third=STEPS)
def test_a_committed_transaction_is_as_if_it_had_run_alone(
    first: list[Step], second: list[Step], third: list[Step]
) -> None:
    """`second` commits while `third` is open: third either conflicts and changes nothing, or is as if it came last."""
    tree, model = Tree(), dict[str, tuple[bytes, str]]()
    setup = Transaction(tree, 0, Limits())
    for step in first:
        apply(setup, step, b"first")
        model_apply(model, step, b"first")
    setup.commit()
    assert dump(tree) == model

    late, early = Transaction(tree, 0, Limits()), Transaction(tree, 0, Limits())
    for step in third:
        apply(late, step, b"third")
    for step in second:
        apply(early, step, b"second")
        model_apply(model, step, b"second")
    early.commit()
    assert dump(tree) == model

    before = tree.root
    committed = False
    with tolerated(errno.EAGAIN):
        late.commit()
        committed = True
    if committed:
        for step in third:
            model_apply(model, step, b"third")
        assert dump(tree) == model
    else:
        assert tree.root is before
        assert any(operation != "read" for operation, _ in second), "only a change makes a conflict"
    assert sum(tree.owned.values()) == node_count(tree)


@settings(max_examples=100)
@given(steps=STEPS)
def test_the_changes_reported_are_the_changes_made(steps: list[Step]) -> None:
    tree = Tree()
    for number, step in enumerate(steps):
        view = Transaction(tree, 0, Limits(), whole=True)
        apply(view, step, b"%d" % number)
        before = dump(tree)
        told = {change.path for change in view.commit()}
        after = dump(tree)
        changed = {path for path in before | after if before.get(path) != after.get(path)}
        made_on_the_way = {path for path in changed - told if after.get(path, (b"x",))[0] == b"" and path not in before}
        assert changed - made_on_the_way <= told
        assert told <= changed | {step[1]}


def test_old_roots_are_unchanged_by_new_ones() -> None:
    tree = Tree()
    write = Transaction(tree, 0, Limits())
    write.write("/a/b", b"1")
    write.commit()
    old = tree.root
    more = Transaction(tree, 0, Limits())
    more.write("/a/b", b"2")
    more.write("/a/c", b"3")
    more.rm("/a/b")
    more.commit()
    node = find(old, "/a/b")
    assert node is not None
    assert node.value == b"1"
    assert find(old, "/a/c") is None
