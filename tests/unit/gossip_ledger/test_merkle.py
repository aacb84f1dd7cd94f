"""The tree, its proofs, and forged ones."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip_ledger.errors import UnsoundError
from gossip_ledger.ledger import Ledger
from gossip_ledger.merkle import path, root_from, tree_root
from gossip_ledger.records import Transfer
from gossip_ledger.root import verify_account_proof
from tests.unit.gossip_ledger.build import (
    GENESIS,
    NETWORK,
    OTHER_NETWORK,
    OWNER,
    PAYER,
    TREASURY,
    entry,
    put_final,
)


def by_definition(leaves: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, recursively."""
    if len(leaves) < 2:
        return hashlib.sha256(b"\0" + leaves[0]).digest() if leaves else hashlib.sha256(b"").digest()
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\1" + by_definition(leaves[:split]) + by_definition(leaves[split:])).digest()


@given(st.lists(st.binary(max_size=4), max_size=40))
def test_the_shape_and_every_proof(leaves: list[bytes]) -> None:
    root = tree_root(leaves)
    assert root == by_definition(leaves)
    for index, leaf in enumerate(leaves):
        siblings = path(leaves, index)
        assert root_from(leaf, index, len(leaves), siblings) == root
        assert root_from(leaf + b"x", index, len(leaves), siblings) != root
        with pytest.raises(UnsoundError):
            root_from(leaf, index, len(leaves), (*siblings, b"x" * 32))
        if siblings:
            with pytest.raises(UnsoundError):
                root_from(leaf, index, len(leaves), siblings[:-1])


def test_places_outside_the_tree_are_refused() -> None:
    for index, size in ((1, 1), (-1, 4), (0, 0), (4, 4)):
        with pytest.raises(UnsoundError, match="outside"):
            root_from(b"", index, size, ())


def test_an_account_can_be_proved_and_not_forged() -> None:
    ledger = Ledger(GENESIS)
    put_final(ledger, entry(PAYER, Transfer(to=OWNER.account, amount=40)))
    root = ledger.root()
    for key in (PAYER, OWNER):
        proof = ledger.account_proof(key.account)
        assert proof is not None
        verify_account_proof(proof, root, NETWORK)
        forged = (
            replace(proof, account=replace(proof.account, entitled=proof.account.entitled + 1)),
            replace(proof, account=replace(proof.account, is_frozen=True)),
            replace(proof, size=proof.size + 1),
            replace(proof, index=proof.index ^ 1),
        )
        for one in forged:
            with pytest.raises(UnsoundError):
                verify_account_proof(one, root, NETWORK)
        with pytest.raises(UnsoundError):
            verify_account_proof(proof, root, OTHER_NETWORK)
    assert ledger.account_proof(TREASURY.account) is None
