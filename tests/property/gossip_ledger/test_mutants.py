"""The claims have power: each broken rule is noticed within a few hundred small worlds."""

from __future__ import annotations

import pytest

from tests.property.gossip_ledger.mutants import MUTANTS, first_noticed


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_rule_is_noticed(name: str) -> None:
    assert first_noticed(name, worlds=300), "nobody noticed"
