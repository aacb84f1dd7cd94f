"""The gateway's routes to a node's worker."""

from __future__ import annotations

from tests.unit.peer.test_gateway import World, error_of, world

__all__ = ["world"]


async def test_the_worker_is_priced_paused_drained_and_opened(world: World) -> None:
    node = world.node
    async with world.keyed() as client:
        reply = await client.post("/api/worker/price", json={"price_out": 9})
        assert (reply.status_code, node.prices) == (200, (1000, 9))
        assert (reply.json()["price_in"], reply.json()["price_out"]) == (1000, 9)
        await client.post("/api/worker/price", json={"price_in": 0, "price_out": 10**15})
        assert node.prices == (0, 10**15)
        for body, field in (
            ({}, "price_in"),
            ({"price_in": -1}, "price_in"),
            ({"price_out": 10**15 + 1}, "price_out"),
            ({"price_out": 1.0}, "price_out"),
            ({"price_in": True}, "price_in"),
            ({"price": 1}, "price"),
        ):
            reply = await client.post("/api/worker/price", json=body)
            assert (reply.status_code, error_of(reply)["param"]) == (400, field)
        assert node.prices == (0, 10**15)
        for action, standing in (("pause", "paused"), ("drain", "draining"), ("resume", "open")):
            reply = await client.post(f"/api/worker/{action}", json={})
            assert (reply.status_code, reply.json()["standing"], node.standing) == (200, standing, standing)
            assert (await client.post(f"/api/worker/{action}", json={"now": 1})).status_code == 400
