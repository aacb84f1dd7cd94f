"""A Merkle tree over a list of byte strings, shaped as in RFC 6962: an odd last node moves up as it is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from gossip_ledger.errors import UnsoundError


def tree_root(leaves: Sequence[bytes]) -> bytes:
    """The root of the tree over `leaves`; of none, the hash of nothing."""
    level = [_leaf(leaf) for leaf in leaves]
    if not level:
        return hashlib.sha256(b"").digest()
    while len(level) > 1:
        level = _above(level)
    return level[0]


def path(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """The siblings that lead from leaf `index` to the root, from below."""
    assert 0 <= index < len(leaves), "no such leaf"
    level, found = [_leaf(leaf) for leaf in leaves], list[bytes]()
    while len(level) > 1:
        if index ^ 1 < len(level):
            found.append(level[index ^ 1])
        level, index = _above(level), index // 2
    return tuple(found)


def root_from(leaf: bytes, index: int, size: int, siblings: Sequence[bytes]) -> bytes:
    """The root of a tree of `size` leaves with `leaf` at `index`. Raises `UnsoundError` on a bad shape."""
    if not 0 <= index < size:
        raise UnsoundError("the proof's place lies outside the tree")
    node, left = _leaf(leaf), list(reversed(siblings))
    while size > 1:
        if index ^ 1 < size:
            if not left:
                raise UnsoundError("the proof is too short")
            other = left.pop()
            node = _node(other, node) if index & 1 else _node(node, other)
        index, size = index // 2, (size + 1) // 2
    if left:
        raise UnsoundError("the proof is too long")
    return node


def _leaf(data: bytes) -> bytes:
    return hashlib.sha256(b"\0" + data).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def _above(level: list[bytes]) -> list[bytes]:
    pairs = [_node(left, right) for left, right in zip(level[::2], level[1::2], strict=False)]
    return pairs if len(level) % 2 == 0 else [*pairs, level[-1]]
