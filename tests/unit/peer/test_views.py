"""What the ledger says as JSON: amounts that add up, each with its standing, and zeros explained."""

from __future__ import annotations

import json
from typing import Any

from gossip_ledger.records import ModelId, Open, Publish
from peer import views
from peer.author import Author
from peer.models import published
from tests.unit.peer.desk import CREATOR, FUNDS, GENESIS, MODEL, OTHER, PAYER, WITNESS, WORKER, Desk, person
from tests.unit.peer.tabs import tab_of
from tests.unit.peer.test_till import ask_of


async def traded(*, is_final: bool = True) -> Desk:
    """A ledger with a published model and one receipt of 100."""
    desk = await Desk().load()
    creator = Author(service=desk.service, signer=CREATOR, clock=desk.clock)
    await creator.write(Publish(manifest=MODEL, successor_of=ModelId(b""), fee=0))
    opened = await desk.author.write(Open(worker=WORKER.account, limit=1000, expiry=10))
    await desk.witness()
    await desk.till.settle(tab_of(ask_of(opened, 1), 100))
    if is_final:
        await desk.witness()
    return desk


def names(desk: Desk) -> views.Names:
    return views.Names(desk.service.ledger, published(desk.service.ledger))


def amounts(view: dict[str, Any]) -> dict[str, int]:
    return {row["what"]: row["amount"] for row in view["amounts"]}


async def test_a_receipt_shows_who_gets_what_and_it_adds_up() -> None:
    desk = await traded()
    ((ident, receipt),) = desk.service.ledger.receipts()
    view: dict[str, Any] = views.receipt_view(desk.service.ledger, ident, receipt, names(desk))
    assert (view["standing"], view["acks"], view["quorum"], view["fee"]) == ("final", 1, 1, 100)
    by_role = {part["role"]: part["amount"] for part in view["shares"]}
    assert by_role == {"worker": 60, "creator": 10, "data": 15, "upkeep": 10, "network": 5}
    assert view["attribution"] == "prior"
    assert json.loads(json.dumps(view)) == view
    assert {part["name"] for part in view["shares"]} >= {
        "upkeep fund of speeches",
        "creator of speeches",
        "one",
    }


async def test_what_is_not_final_says_so() -> None:
    desk = await traded(is_final=False)
    ((ident, receipt),) = desk.service.ledger.receipts()
    assert views.receipt_view(desk.service.ledger, ident, receipt, names(desk))["standing"] == "pending"
    worker: dict[str, Any] = views.balance_view(desk.service.ledger, WORKER.account, names(desk))
    assert (worker["pending"], worker["earned"]) == (60, 0)
    assert views.payouts_view(desk.service.ledger, names(desk))["fees"] == 0
    assert "nothing final yet" in str(views.explain_account(desk.service.ledger, WORKER.account, names(desk)))


async def test_payouts_add_up_to_the_fees_with_funds_apart() -> None:
    desk = await traded()
    view: dict[str, Any] = views.payouts_view(desk.service.ledger, names(desk))
    assert view["sums_to_fees"] is True
    assert view["fees"] == 100 == sum(view["accounts"].values()) + sum(view["funds"].values())
    assert view["funds"] == {MODEL.hex(): 10}
    assert view["accounts"][OTHER.account.hex()] == 15


async def test_every_amount_of_an_account_has_its_standing() -> None:
    desk = await traded()
    view: dict[str, Any] = views.balance_view(desk.service.ledger, PAYER.account, names(desk))
    assert amounts(view)["spendable"] == FUNDS - 1000
    assert amounts(view)["held under opens"] == 900
    worker: dict[str, Any] = views.balance_view(desk.service.ledger, WORKER.account, names(desk))
    assert amounts(worker)["earned, not yet collected"] == 60


async def test_every_zero_is_explained() -> None:
    desk = await traded()
    ledger, known = desk.service.ledger, names(desk)

    def why(account: bytes) -> str:
        return str(views.explain_account(ledger, account, known)["why"])  # pyright: ignore[reportArgumentType]

    assert why(WORKER.account) == "earned from the final receipts listed"
    assert "paid for the receipts" in why(PAYER.account)
    assert "served, created and contributed nothing" in why(person("nobody").account)
    fresh = await Desk().load()
    creator = Author(service=fresh.service, signer=CREATOR, clock=fresh.clock)
    await creator.write(Publish(manifest=MODEL, successor_of=ModelId(b""), fee=0))
    view = views.explain_account(fresh.service.ledger, CREATOR.account, names(fresh))
    assert "no recorded answer has drawn" in str(view["why"])


async def test_names_are_for_people_and_never_hide_an_account() -> None:
    desk = await traded()
    known = names(desk)
    assert known.of(OTHER.account) == "one"
    assert known.of(WITNESS.account) == "witness"
    assert known.of(GENESIS.treasury) == "treasury"
    assert known.of(WORKER.account) == WORKER.account.hex()[:8]


async def test_models_say_who_answers_for_them() -> None:
    desk = await traded()
    (row,) = views.models_view(desk.service.ledger, {MODEL: [WORKER.account]})
    assert (row["name"], row["standing"], row["holders"]) == ("speeches", "final", [WORKER.account.hex()])
