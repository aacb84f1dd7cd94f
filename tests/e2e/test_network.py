"""Daemons as processes: joining, spending, crashing, cheating, and what is left of it in every ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
import trio

from gossip_ledger.genesis import network_id
from gossip_ledger.records import (
    NO_RECORD,
    SIGNED_RECORDS,
    Bill,
    Entry,
    ModelId,
    Open,
    Receipt,
    RecordId,
    Signed,
)
from gossip_ledger.signing import countersign, record_id, sign_bill, sign_record
from p2p.channel import FrameChannel
from p2p.exchange import HELLO_PROTOCOL, serve_hello
from p2p.gossip import RecordGossip
from p2p.invites import decode_invite
from p2p.libp2p_transport import Libp2pTransport, open_libp2p_transport
from p2p.liveness import PING_PROTOCOL, answer_pings
from p2p.messages import Hello
from p2p.protocols.limits import CHUNK_TOKENS, HELLO_FRAME_BYTES_MAX
from p2p.transport import Stream
from peer.capabilities import SystemClock
from peer.keys import SeedSigner, read_account
from peer.spreading import RULES_VERSION
from peer.topics import adverts_topic, records_topic
from tests.e2e.network import GRANT, Net, running_network, until, worker_config

pytestmark = pytest.mark.slow


async def test_every_kind_of_peer_survives_kill_9(tmp_path: Path) -> None:
    """Witness, creator, worker and payer are killed in turn; what they were told is kept; equal roots."""
    async with running_network(tmp_path) as net:
        await net.join("studio")
        await net.join("worker", worker_config())
        await net.join("reader")
        model = await net.publish_base("studio")
        await net.funded("reader")
        await net.served(model, 1, seen_by="reader")
        answer = await ask(net, "reader", "What is the capital of France?", 12)
        assert 1 <= answer["tokens_out"] <= 12
        assert sum(share["amount"] for share in answer["shares"]) == answer["fee"] > 0
        before = await net.agree()
        for name in ("reader", "worker", "studio", "witness"):
            net[name].kill()
            net[name].start()
            await net[name].ready()
        assert await net.agree() == before
        for name in net.daemons:
            kept = await net[name].get("/api/ledger/receipts")
            assert [row["id"] for row in kept["receipts"]] == answer["receipt"]
            assert kept["receipts"][0]["standing"] == "final"
        again = await net["reader"].get(f"/api/answers/{answer['id']}")
        assert again["text"] == answer["text"]
        await net.served(model, 1, seen_by="reader")
        second = await ask(net, "reader", "What is the capital of France?", 4)
        late = await net.join("latecomer")
        root = await net.agree()
        assert root != before
        receipts = (await late.get("/api/ledger/receipts"))["receipts"]
        assert {row["id"] for row in receipts} == {*answer["receipt"], *second["receipt"]}
        payouts = await late.get("/api/ledger/payouts")
        assert payouts["sums_to_fees"]
        assert payouts["fees"] == answer["fee"] + second["fee"]
        confirmed = await late.get("/api/ledger/confirm", receipt=answer["receipt"][0])
        assert confirmed["is_confirmed"], confirmed
        assert (await late.get("/api/status"))["has_torch"] is False


async def test_a_worker_killed_in_the_middle_is_paid_what_it_delivered(tmp_path: Path) -> None:
    """The answer goes on elsewhere, each token is billed once, the crashed worker's bill gets its receipt."""
    async with running_network(tmp_path) as net:
        await net.join("studio")
        await net.join("bf16", worker_config("bf16"))
        await net.join("nf4", worker_config("nf4"))
        await net.join("reader")
        model = await net.publish_base("studio")
        await net.funded("reader")
        await net.served(model, 2, seen_by="reader")
        names = {read_account(net[name].home).hex(): name for name in net.daemons}
        body = chat("Explain what a peer-to-peer network is.", 48) | {"stream": True}
        worker, shown, killed, answer = "", 0, "", {}
        async with net["reader"].stream("/v1/chat/completions", body) as events:
            async for event in events:
                assert "error" not in event, event
                worker = (event.get("upkeep_event") or {}).get("routed", {}).get("worker", worker)
                shown += sum(len(choice.get("delta", {}).get("content") or "") for choice in event["choices"])
                if shown > 40 and not killed:
                    killed = names[worker]
                    net[killed].kill()
                answer = event.get("upkeep", answer)
        assert killed
        assert answer["failovers"] == 1
        assert len(answer["workers"]) == 2
        assert len(answer["receipt"]) == 1
        net[killed].start()
        await net[killed].ready()

        async def settled() -> bool:
            found = await net["reader"].get(f"/api/answers/{answer['id']}")
            answer.update(found)
            return len(found["receipt"]) == 2

        await until(settled, "the crashed worker never turned its bill into a receipt")
        await net.agree()
        receipts = (await net["studio"].get("/api/ledger/receipts"))["receipts"]
        billed = sum(row["tokens_out"] for row in receipts)
        assert answer["tokens_out"] - CHUNK_TOKENS <= billed <= answer["tokens_out"]
        assert (
            sum(row["fee"] for row in receipts) == answer["fee"] == sum(s["amount"] for s in answer["shares"])
        )


async def test_a_double_spend_ends_with_one_final_and_a_frozen_account(tmp_path: Path) -> None:
    """A late rival changes nothing; of two at once at most one is final, the same one everywhere."""
    async with running_network(tmp_path) as net:
        await net.join("one")
        await net.join("two")
        late = SeedSigner(decode_invite(net.invite()).grant_seed)
        at_once = SeedSigner(decode_invite(net.invite()).grant_seed)
        async with Stranger(net) as (transport, gossip):
            for signer in (late, at_once):
                rivals = [SIGNED_RECORDS.encode(open_entry(signer, net, name)) for name in ("one", "two")]
                if signer is late:
                    await spread(transport, gossip, rivals[:1])
                    await until(lambda: final_opens_are(net, late, 1), "the first open never became final")
                await spread(transport, gossip, rivals)
                await until(
                    lambda who=signer: frozen_everywhere(net, who), "the fork was not seen everywhere"
                )
        first = record_id(open_entry(late, net, "one").record, network_id(net.genesis)).hex()
        assert await final_opens(net, late) == [{first}] * len(net.daemons)
        found = await final_opens(net, at_once)
        assert all(finals == found[0] for finals in found)
        assert len(found[0]) <= 1, "two rivals became final"
        assert len({(await net[name].get("/api/ledger/root"))["root"] for name in net.daemons}) == 1


async def final_opens(net: Net, author: SeedSigner) -> list[set[str]]:
    """The ids of an account's final opens, as each peer holds them."""
    found: list[set[str]] = []
    for daemon in net.daemons.values():
        shown = await daemon.get("/api/ledger/explain", subject=author.account.hex())
        found.append({row["id"] for row in shown["opens"] if row["standing"] == "final"})
    return found


async def final_opens_are(net: Net, author: SeedSigner, count: int) -> bool:
    return all(len(found) == count for found in await final_opens(net, author))


async def frozen_everywhere(net: Net, author: SeedSigner) -> bool:
    who = author.account.hex()
    rows = [await d.get("/api/ledger/balance", account=who) for d in net.daemons.values()]
    return all(row["is_frozen"] for row in rows)


async def test_forged_receipts_pay_nobody(tmp_path: Path) -> None:
    """A worker that signs the payer's part itself, and one over an open that was never made."""
    async with running_network(tmp_path) as net:
        await net.join("victim")
        await net.funded("victim")
        cheat = SeedSigner(bytes(range(32)))
        forged = [forged_receipt(cheat, read_account(net["victim"].home), net), replayed_elsewhere(cheat)]
        before = await net.agree()
        async with Stranger(net) as (transport, gossip):
            await spread(transport, gossip, [SIGNED_RECORDS.encode(signed) for signed in forged])
            await trio.sleep(2)
        assert await net.agree() == before
        for name in net.daemons:
            assert (await net[name].get("/api/ledger/receipts"))["receipts"] == []
            balance = await net[name].get("/api/ledger/balance", account=cheat.account.hex())
            assert balance["earned"] == balance["pending"] == 0


async def test_a_peer_of_another_network_is_refused_with_a_reason(tmp_path: Path) -> None:
    async with running_network(tmp_path / "a") as ours, running_network(tmp_path / "b") as other:
        lost = ours.add("lost")
        lost.home.genesis.write_bytes(other["witness"].home.genesis.read_bytes())
        lost.start()
        await lost.ready()

        async def refused() -> bool:
            status = await lost.get("/api/status")
            return any("network" in row["reason"] for row in status["refusals"])

        await until(refused, "nobody said why")
        assert (await lost.get("/api/status"))["links"] == 0


async def test_the_gateway_answers_its_owner_only(tmp_path: Path) -> None:
    async with running_network(tmp_path) as net:
        url = net["witness"].url
        key = {"Authorization": net["witness"].client.headers["Authorization"]}
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            spend = chat("hello", 4)
            assert (await client.post("/v1/chat/completions", json=spend)).status_code == 401
            wrong = {"Authorization": "Bearer " + "0" * 64}
            assert (await client.post("/v1/chat/completions", json=spend, headers=wrong)).status_code == 401
            rebound = await client.get("/api/status", headers={**key, "Host": "evil.example"})
            assert rebound.status_code == 403
            crossed = await client.post(
                "/v1/chat/completions", json=spend, headers={**key, "Origin": "https://evil.example"}
            )
            assert crossed.status_code == 403
            known = await client.post("/v1/chat/completions", json=spend, headers=key)
            assert known.status_code == 404
            assert known.json()["error"]["code"] == "model_not_found"


async def ask(net: Net, name: str, question: str, tokens: int) -> dict[str, Any]:
    """One answer, whole."""
    return (await net[name].post("/v1/chat/completions", chat(question, tokens)))["upkeep"]


def chat(question: str, tokens: int) -> dict[str, object]:
    return {
        "model": "smollm2",
        "messages": [{"role": "user", "content": question}],
        "max_tokens": tokens,
        "temperature": 0,
    }


def open_entry(signer: SeedSigner, net: Net, worker: str) -> Signed:
    """The first entry of a funded key: an open of everything to one worker."""
    body = Open(worker=read_account(net[worker].home), limit=GRANT, expiry=1000)
    entry = Entry(author=signer.account, seq=1, prev=NO_RECORD, epoch=0, body=body)
    return sign_record(entry, signer, network_id(net.genesis))


def forged_receipt(cheat: SeedSigner, victim: Any, net: Net) -> Signed:
    """A receipt over a bill that the victim never signed."""
    bill = make_bill(victim)
    network = network_id(net.genesis)
    own = sign_bill(make_bill(cheat.account), cheat, network)
    return countersign(make_receipt(cheat, bill), own, cheat, network)


def replayed_elsewhere(cheat: SeedSigner) -> Signed:
    """A receipt that is sound in form, signed for another network."""
    bill = make_bill(cheat.account)
    elsewhere: Any = bytes(32)
    return countersign(make_receipt(cheat, bill), sign_bill(bill, cheat, elsewhere), cheat, elsewhere)


def make_bill(payer: Any) -> Bill:
    return Bill(
        payer=payer,
        open=RecordId(b"\1" * 32),
        ask=7,
        model=ModelId(b"\2" * 32),
        quote=RecordId(b"\3" * 32),
        answers=1,
        tokens_in=10,
        tokens_out=10,
        fee=1_000_000,
        epoch=0,
        prompt_commit=bytes(32),
        output_commit=bytes(32),
    )


def make_receipt(cheat: SeedSigner, bill: Bill) -> Receipt:
    return Receipt(
        worker=cheat.account, n=1, prev=bill.open, cumulative=bill.fee, bill=bill, evidence=(), sketch=b""
    )


class Stranger:
    """A transport of our own beside the daemons, linked to all of them."""

    def __init__(self, net: Net) -> None:
        self._net = net

    async def __aenter__(self) -> tuple[Libp2pTransport, RecordGossip]:
        network = network_id(self._net.genesis)
        self._opened = open_libp2p_transport(
            seed=b"\x55" * 32,
            listen=(),
            topics=(records_topic(network), adverts_topic(network)),
            log=structlog.get_logger("stranger"),
        )
        transport = await self._opened.__aenter__()
        transport.serve(HELLO_PROTOCOL, self._greet)
        transport.serve(PING_PROTOCOL, answer_pings)
        for daemon in self._net.daemons.values():
            await transport.dial((await daemon.get("/api/status"))["addresses"][0])
        await trio.sleep(1.5)
        return transport, RecordGossip(transport, records_topic(network))

    async def _greet(self, stream: Stream) -> None:
        hello = Hello(
            network=network_id(self._net.genesis),
            rules=RULES_VERSION,
            software="stranger",
            clock_s=SystemClock().now_s(),
            listening=(),
            known=(),
        )
        async with FrameChannel(stream, frame_bytes_max=HELLO_FRAME_BYTES_MAX) as channel:
            await serve_hello(channel, hello)

    async def __aexit__(self, *failure: Any) -> None:
        await self._opened.__aexit__(*failure)


async def spread(transport: Libp2pTransport, gossip: RecordGossip, records: list[bytes]) -> None:
    """Gossips records once."""
    for record in records:
        gossip.queue(record)
    with trio.move_on_after(1.0):
        await gossip.run()
    assert transport.links(), "the stranger was cut off before it could speak"
