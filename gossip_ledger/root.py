"""The state root: one hash that is equal exactly where the state is, and proofs of single accounts under it.

The leaves are the accounts, then the holds, then the funds, each sorted by id; every field of each stands in
its leaf. The root binds the network and the number of leaves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, final

from gossip_ledger.errors import UnsoundError
from gossip_ledger.merkle import path, root_from, tree_root
from gossip_ledger.records import AccountId, MicroUnits, ModelId, NetworkId
from gossip_ledger.state import AccountState, HoldState, State

_PREFIX: Final = b"upkeep/1/state\0"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AccountProof:
    """That the state with a certain root says this of an account."""

    account: AccountState
    index: int
    size: int
    """Leaves in the tree."""
    path: tuple[bytes, ...]


def state_root(state: State, network: NetworkId) -> bytes:
    """The root of a state, 32 bytes."""
    leaves = list(_leaves(state))
    return _bind(network, len(leaves), tree_root(leaves))


def account_proof(state: State, account: AccountId) -> AccountProof | None:
    """The proof of one account; None for an account that the state does not know."""
    if account not in state.accounts:
        return None
    leaves, index = list(_leaves(state)), sorted(state.accounts).index(account)
    return AccountProof(
        account=state.accounts[account], index=index, size=len(leaves), path=path(leaves, index)
    )


def verify_account_proof(proof: AccountProof, root: bytes, network: NetworkId) -> None:
    """Raises `UnsoundError` unless the state with `root` says what the proof says."""
    tree = root_from(_account_leaf(proof.account), proof.index, proof.size, proof.path)
    if _bind(network, proof.size, tree) != root:
        raise UnsoundError("the proof does not lead to that root")


def _bind(network: NetworkId, size: int, tree: bytes) -> bytes:
    return hashlib.sha256(_PREFIX + network + size.to_bytes(8, "big") + tree).digest()


def _leaves(state: State) -> Iterator[bytes]:
    for account in sorted(state.accounts):
        yield _account_leaf(state.accounts[account])
    for hold in sorted(state.holds):
        yield _hold_leaf(state.holds[hold])
    for model in sorted(state.funds):
        yield _fund_leaf(model, state.funds[model])


def _account_leaf(account: AccountState) -> bytes:
    numbers = (
        account.seq,
        account.epoch,
        account.spendable,
        account.locked,
        account.unvested,
        account.entitled,
        account.collected,
        account.uncollected,
        account.is_frozen,
    )
    return b"account" + account.account + _numbers(*numbers) + account.head


def _hold_leaf(hold: HoldState) -> bytes:
    numbers = _numbers(hold.is_bond, hold.limit, hold.fees, hold.receipts, hold.is_frozen)
    return b"hold" + hold.hold + hold.author + numbers + hold.head


def _fund_leaf(model: ModelId, left: MicroUnits) -> bytes:
    return b"fund" + model + _numbers(left)


def _numbers(*values: int) -> bytes:
    """Sixteen bytes each: cumulative amounts may pass 2^63, and what is uncollected may be negative."""
    return b"".join(value.to_bytes(16, "big", signed=True) for value in values)
