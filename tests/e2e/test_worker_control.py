"""A worker's operator at work, on real daemons: prices, pausing, draining during an answer, earnings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from peer.config import load_config
from peer.demo.daemons import DaemonError
from tests.e2e.network import Net, running_network, until, worker_config

pytestmark = pytest.mark.slow


async def test_an_operator_steers_a_worker_that_serves(tmp_path: Path) -> None:
    async with running_network(tmp_path) as net:
        await net.join("studio")
        await net.join("worker", worker_config())
        await net.join("reader")
        model = await net.publish_base("studio")
        await net.funded("reader")
        await net.served(model, 1, seen_by="reader")
        with pytest.raises(DaemonError, match="no worker; start it"):
            await net["reader"].post("/api/worker/drain", {})

        first = await ask(net, model, 8)
        state = await net["worker"].post("/api/worker/price", {"price_in": 0, "price_out": 7_000})
        assert (state["price_in"], state["price_out"], state["standing"]) == (0, 7_000, "open")
        assert load_config(net["worker"].home).worker.price_out == 7_000
        await until(lambda: advertised(net, 7_000), "the new price was never advertised")
        second = await ask(net, model, 8)
        assert second["fee"] == -(-7_000 * second["tokens_out"] // 1000)

        state = await net["worker"].post("/api/worker/pause", {})
        assert (state["standing"], state["is_safe_to_stop"]) == ("paused", True)
        await until(lambda: advertised(net, None), "the worker was still advertised")
        with pytest.raises(DaemonError, match="503"):
            await ask(net, model, 8)
        await net["worker"].post("/api/worker/resume", {})
        await net.served(model, 1, seen_by="reader")

        third = await drain_in_the_middle(net, model)
        await net.agree()
        await until(lambda: is_earned(net, (first, second, third)), "the earnings never became final")


async def drain_in_the_middle(net: Net, model: str) -> dict[str, Any]:
    """An answer that runs while its worker drains comes to its end; then it is safe to stop."""
    body = {"model": model, "prompt": "Once upon a time", "max_tokens": 96, "stream": True}
    answer: dict[str, Any] = {}
    async with net["reader"].stream("/v1/completions", body) as chunks:
        async for chunk in chunks:
            if not answer and chunk["choices"] and chunk["choices"][0]["text"]:
                answer = await net["worker"].post("/api/worker/drain", {})
                assert (answer["standing"], answer["asks"], answer["is_safe_to_stop"]) == (
                    "draining",
                    1,
                    False,
                )
                with pytest.raises(DaemonError, match=r"50|429"):
                    await ask(net, model, 8)
            if "upkeep" in chunk:
                answer = chunk["upkeep"]
    assert answer["tokens_out"] > 8
    assert answer["failovers"] == 0
    with trio.fail_after(30):
        while not (await net["worker"].get("/api/worker"))["is_safe_to_stop"]:
            await trio.sleep(0.1)
    return answer


async def ask(net: Net, model: str, tokens: int) -> dict[str, Any]:
    body = {"model": model, "prompt": "The sea is", "max_tokens": tokens}
    return (await net["reader"].post("/v1/completions", body))["upkeep"]


async def advertised(net: Net, price_out: int | None) -> bool:
    """Whether the reader sees the model offered at this price; None: not offered at all."""
    rows = (await net["reader"].get("/api/workers"))["workers"]
    return [row["price_out"] for row in rows if row["model_ids"]] == (
        [] if price_out is None else [price_out]
    )


async def is_earned(net: Net, answers: tuple[dict[str, Any], ...]) -> bool:
    """Whether the worker's final earnings are its parts of these answers."""
    found = await net["worker"].get("/api/worker/earnings")
    parts = [part["amount"] for one in answers for part in one["shares"] if part["role"] == "worker"]
    total = found["total"]
    assert total["final"] + total["pending"] <= sum(parts)
    assert total["fees"] <= sum(one["fee"] for one in answers)
    return total["final"] == sum(parts) and total["receipts"] == len(answers) and total["pending"] == 0
