"""A running node as `NodeApi`: what the gateway may ask, answered from its services."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import final

from gossip_ledger.errors import LocalError, RemoteError, SignatureError
from gossip_ledger.ledger import Ledger
from gossip_ledger.records import AccountId, Manifest, ModelId, Receipt, RecordId, Transfer
from gossip_ledger.signing import check_account
from p2p.quotes import quote_id
from peer import views
from peer.api import (
    Answer,
    AskEvent,
    AskOptions,
    ErrorCode,
    Json,
    PublishRequest,
    RequestError,
)
from peer.asking import Asker
from peer.models import matching_account, published, resolve
from peer.node import Node, Worker
from peer.serving import AskServer
from peer.till import Till
from peer.trade import Prices, Standing
from peer.version import SOFTWARE

ACCOUNT_HEX: int = 64


@final
class Facade:
    """See `peer.api.NodeApi`."""

    def __init__(self, node: Node) -> None:
        self._node = node

    @property
    def _ledger(self) -> Ledger:
        return self._node.service.ledger

    def _names(self) -> views.Names:
        return views.Names(self._ledger, published(self._ledger))

    def _asker(self) -> Asker:
        if self._node.asker is None:
            raise RequestError(ErrorCode.NOT_READY, "this node is still starting; ask again in a moment")
        return self._node.asker

    def status(self) -> Json:
        node, ledger, given = self._node, self._ledger, self._node.given
        final = sum(1 for ident in ledger.ids() if ledger.is_final(ident))
        return {
            "account": node.account.hex(),
            "name": self._names().of(node.account),
            "network": node.service.network.hex(),
            "network_name": given.genesis.name,
            "unit": given.genesis.unit,
            "software": SOFTWARE,
            "uptime_s": given.clock.now_s() - node.started_s,
            "epoch": node.service.epoch(given.clock.now_s()),
            "addresses": list(given.transport.addresses),
            "links": len(node.spreader.links.peers()),
            "refusals": [{"who": r.who, "reason": r.reason} for r in node.spreader.links.refusals()],
            "is_witness": node.witness.is_named and given.is_witness,
            "witness_waiting": len(node.witness.waiting),
            "is_synced": node.spreader.synced.is_set(),
            "has_torch": "torch" in sys.modules,
            "worker": self._worker_status(),
            "spendable": node.wallet.spendable(),
            "ledger": {
                "records": sum(1 for _ in ledger.ids()),
                "final": final,
                "root": ledger.root().hex(),
                "alarms": list(ledger.alarms()),
                "frozen": [account.hex() for account in sorted(ledger.equivocators())],
            },
        }

    def _worker_status(self) -> Json | None:
        node, worker = self._node, self._node.given.worker
        if worker is None or node.stock is None:
            return None
        info = worker.engine.info
        return {
            "base": info.base.hex(),
            "quantization": info.quantization,
            "device": info.device,
            "kernels": info.kernels,
            "max_context": info.max_context,
            "slots": info.slots,
            "price_in": worker.trade.prices.tokens_in,
            "price_out": worker.trade.prices.tokens_out,
            "standing": worker.trade.standing.value,
            "models": [manifest.name for manifest in node.stock.resident.values()],
        }

    def peers(self) -> list[Json]:
        names = self._names()
        return [
            {
                "account": link.peer.hex(),
                "name": names.of(link.peer),
                "address": link.address,
                "direction": "outbound" if link.is_outbound else "inbound",
                "round_trip_ms": link.round_trip_ms,
            }
            for link in self._node.spreader.links.peers()
        ]

    def workers(self) -> list[Json]:
        node = self._node
        linked = {link.peer for link in node.given.transport.links()}
        names = {entry.model: entry.manifest.name for entry in published(self._ledger)}
        rows: list[Json] = []
        for advert in node.spreader.adverts.live(node.given.clock.now_s()):
            seen = node.observations.get(advert.worker)
            rows.append(
                {
                    "account": advert.worker.hex(),
                    "base": advert.base.hex(),
                    "quantization": advert.quantization,
                    "kernels": advert.kernels,
                    "max_context": advert.max_context,
                    "models": [names.get(model, model.hex()[:8]) for model in advert.resident],
                    "model_ids": [model.hex() for model in advert.resident],
                    "running": advert.running,
                    "waiting": advert.waiting,
                    "slots": advert.slots,
                    "tokens_per_s": advert.tokens_per_s,
                    "observed_tokens_per_s": seen.tokens_per_s,
                    "failures": seen.failures,
                    "price_in": advert.price_in,
                    "price_out": advert.price_out,
                    "is_linked": advert.worker in linked or advert.worker == node.account,
                    "expires_in_s": advert.expiry_s - node.given.clock.now_s(),
                    "software": advert.software,
                }
            )
        return rows

    def models(self) -> list[Json]:
        holders: dict[ModelId, list[AccountId]] = defaultdict(list)
        for advert in self._node.spreader.adverts.live(self._node.given.clock.now_s()):
            for model in advert.resident:
                holders[model].append(advert.worker)
        return views.models_view(self._ledger, holders)

    async def quote(self, options: AskOptions) -> Json:
        signed, most = await self._asker().quote(options)
        quote = signed.quote
        return {
            "id": quote_id(quote, self._node.service.network).hex(),
            "worker": quote.worker.hex(),
            "payer": quote.payer.hex(),
            "model": options.model,
            "model_id": quote.model.hex(),
            "quantization": quote.quantization,
            "price_in": quote.price_in,
            "price_out": quote.price_out,
            "tokens_in_max": quote.tokens_in_max,
            "tokens_out_max": quote.tokens_out_max,
            "max_fee": most,
            "expiry_s": quote.expiry_s,
            "signature": signed.signature.hex(),
            "unit": self._node.given.genesis.unit,
        }

    def ask(self, options: AskOptions) -> AbstractAsyncContextManager[AsyncIterator[AskEvent]]:
        return self._asker().ask(options)

    def answer(self, answer_id: str) -> Answer:
        return self._node.answers.find(answer_id)

    def _account(self, text: str | None) -> AccountId:
        if text is None:
            return self._node.account
        try:
            if len(text) == ACCOUNT_HEX:
                return AccountId(bytes.fromhex(text))
        except ValueError:
            raise RequestError(ErrorCode.BAD_REQUEST, f"{text} is not an account in hex") from None
        return matching_account(self._known_accounts(), text)

    def _known_accounts(self) -> set[AccountId]:
        known = set(self._ledger.state().accounts) | {self._node.account}
        for entry in published(self._ledger):
            known.add(entry.manifest.creator)
            known.update(cluster.owner for cluster in entry.manifest.clusters)
        return known

    def balance(self, account: str | None) -> Json:
        return views.balance_view(self._ledger, self._account(account), self._names())

    def receipts(self, account: str | None, limit: int) -> list[Json]:
        found = self._ledger.receipts_of(self._account(account)) if account else self._ledger.receipts()
        names = self._names()
        return [views.receipt_view(self._ledger, ident, receipt, names) for ident, receipt in found[-limit:]][
            ::-1
        ]

    def payouts(self) -> Json:
        return views.payouts_view(self._ledger, self._names())

    def root(self) -> Json:
        ledger = self._ledger
        return {
            "root": ledger.root().hex(),
            "records": sum(1 for _ in ledger.ids()),
            "unfinished": len(ledger.unfinished()),
            "supply": ledger.genesis.supply,
            "supply_conserved": ledger.supply_conserved(),
            "alarms": list(ledger.alarms()),
        }

    def explain(self, subject: str) -> Json:
        """An account, a receipt, a model or an answer, by id, prefix or name."""
        text = subject.strip()
        receipt = self._receipt(text)
        if receipt is not None:
            return {"kind": "receipt", **views.receipt_view(self._ledger, *receipt, self._names())}
        try:
            model, manifest = resolve(self._ledger, text)
        except RequestError:
            return views.explain_account(self._ledger, self._account(text or None), self._names())
        return self._explain_model(model, manifest)

    def _receipt(self, prefix: str) -> tuple[RecordId, Receipt] | None:
        if len(prefix) < 6:
            return None
        found = [pair for pair in self._ledger.receipts() if pair[0].hex().startswith(prefix.lower())]
        return found[0] if len(found) == 1 else None

    def _explain_model(self, model: ModelId, manifest: Manifest) -> Json:
        receipts = [(i, r) for i, r in self._ledger.receipts() if r.bill.model == model]
        fees = sum(receipt.bill.fee for ident, receipt in receipts if self._ledger.is_final(ident))
        row = next(row for row in self.models() if row["id"] == model.hex())
        return {
            **row,
            "kind": "model",
            "model_kind": manifest.kind,
            "answers": sum(receipt.bill.answers for _, receipt in receipts),
            "fees": fees,
            "fund": self._ledger.state().funds.get(model, 0),
            "why": "paid by the final receipts of its answers"
            if fees
            else "nobody has asked it anything yet",
        }

    async def confirm(self, receipt_id: str) -> Json:
        """Recomputes a receipt's weights from its evidence, here and now."""
        found = self._receipt(receipt_id)
        if found is None:
            raise RequestError(ErrorCode.NOT_FOUND, f"no receipt {receipt_id} is known here")
        try:
            await self._node.attributor.confirm(found[1])
        except RemoteError as error:
            return {"receipt": found[0].hex(), "is_confirmed": False, "reason": str(error)}
        return {
            "receipt": found[0].hex(),
            "is_confirmed": True,
            "reason": "the weights follow from the evidence",
        }

    async def publish(self, request: PublishRequest) -> Json:
        try:
            model, entry = await self._node.publisher.publish(request)
        except LocalError as error:
            raise RequestError(ErrorCode.BAD_REQUEST, str(error)) from error
        return {"model_id": model.hex(), "entry": entry.hex(), "name": request.name, "standing": "pending"}

    async def send(self, to: str, amount: int) -> Json:
        target = self._account(to)
        try:
            check_account(target)
        except SignatureError as error:
            reason = f"{to} is no account: {error}; money sent there would be lost"
            raise RequestError(ErrorCode.BAD_REQUEST, reason) from error
        try:
            await self._node.wallet.raise_funds(amount)
            entry = await self._node.author.write(Transfer(to=target, amount=amount))
        except LocalError as error:
            raise RequestError(ErrorCode.NO_FUNDS, str(error)) from error
        return {"entry": entry.hex(), "to": target.hex(), "amount": amount, "standing": "pending"}

    def worker(self) -> Json:
        _, server, till = self._working()
        return {
            **(self._worker_status() or {}),
            "unit": self._ledger.genesis.unit,
            "asks": server.asks,
            "receipts_to_write": till.unwritten,
            "is_safe_to_stop": server.asks == 0 and not server.trade.is_open,
        }

    def _working(self) -> tuple[Worker, AskServer, Till]:
        node = self._node
        if node.given.worker is None:
            raise RequestError(
                ErrorCode.BAD_REQUEST, "this node is no worker; start it with `upkeep up --worker`"
            )
        if node.server is None or node.till is None:
            raise RequestError(ErrorCode.NOT_READY, "this node is still starting; ask again in a moment")
        return node.given.worker, node.server, node.till

    async def set_prices(self, price_in: int | None, price_out: int | None) -> Json:
        worker, _, till = self._working()
        now = worker.trade.prices
        wanted = Prices(
            tokens_in=now.tokens_in if price_in is None else price_in,
            tokens_out=now.tokens_out if price_out is None else price_out,
        )
        await worker.trade.charge(wanted)
        till.exposure = wanted.exposure
        return self.worker()

    def set_standing(self, standing: Standing) -> Json:
        self._working()[0].trade.standing = standing
        return self.worker()

    def earnings(self) -> Json:
        return views.earnings_view(self._ledger, self._node.account)

    def metrics(self) -> dict[str, int | float]:
        node, ledger = self._node, self._ledger
        return {
            "upkeep_links": len(node.given.transport.links()),
            "upkeep_workers": len(node.spreader.adverts.live(node.given.clock.now_s())),
            "upkeep_records": sum(1 for _ in ledger.ids()),
            "upkeep_records_unfinished": len(ledger.unfinished()),
            "upkeep_receipts": len(ledger.receipts()),
            "upkeep_alarms": len(ledger.alarms()),
            "upkeep_uptime_seconds": node.given.clock.now_s() - node.started_s,
        }
