"""What only the real transport has: restarts, ports, addresses, orderly ends. Real sockets on loopback."""

from __future__ import annotations

import gc
import warnings
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from gossip_ledger.errors import LocalError
from p2p import limits
from p2p.eventlog import NoLog
from p2p.libp2p_guards import peer_of
from p2p.libp2p_transport import Libp2pTransport, open_libp2p_transport
from p2p.transport import DialError, LinkError, Stream

TOPIC = "/upkeep/test/records/1"
ECHO = "/upkeep/test/echo/1"
LOCAL = "/ip4/127.0.0.1/tcp/0"


@asynccontextmanager
async def open_node(number: int, listen: str = LOCAL, **options: Any) -> AsyncGenerator[Libp2pTransport]:
    async with open_libp2p_transport(
        seed=bytes([number]) * 32, listen=(listen,) if listen else (), topics=(TOPIC,), log=NoLog(), **options
    ) as node:
        yield node


async def until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    with trio.fail_after(timeout_s):
        while not condition():
            await trio.sleep(0.01)


def is_meshed(node: Libp2pTransport, other: Libp2pTransport) -> bool:
    running = node._running
    return running is not None and peer_of(other.account) in running.pubsub.peer_topics.get(TOPIC, set())


async def test_an_unknown_crash_costs_a_reconnect() -> None:
    async def echo(stream: Stream) -> None:
        while data := await stream.read(1000):
            await stream.write(data)

    async def crash() -> None:
        raise ZeroDivisionError("a bug of the library")

    async with open_node(1) as node, open_node(2) as other:
        node.serve(ECHO, echo)
        frames = node.subscribe(TOPIC)
        address = node.addresses[0]
        await other.dial(address)
        for turn, service in enumerate(("swarm", "pubsub")):
            running = node._running
            assert running is not None
            getattr(running, service).manager.run_task(crash)
            await until(lambda was=running: node._running is not was and node._running is not None)
            assert node.restarts == turn + 1
            await until(lambda: not other.links())
            assert node.addresses == (address,), "it listens where it did"
            await other.dial(address)
            stream = await other.open(node.account, ECHO)
            await stream.write(b"again")
            assert await stream.read(10) == b"again"
            await until(lambda: is_meshed(other, node))
            await other.publish(TOPIC, b"%d" % turn)
            with trio.fail_after(5):  # it has forgotten what it saw: neighbours may repeat it
                while (await frames.receive()).data != b"%d" % turn:
                    pass


async def test_while_it_restarts_calls_fail_like_an_absent_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RESTART_DELAY_S_MIN", 1.0)

    async def crash() -> None:
        raise ZeroDivisionError

    async with open_node(1) as node, open_node(2) as other:
        await node.dial(other.addresses[0])
        running = node._running
        assert running is not None
        running.pubsub.manager.run_task(crash)
        await until(lambda: node._running is None)
        with pytest.raises(DialError, match="restarting"):
            await node.dial(other.addresses[0])
        with pytest.raises(LinkError):
            await node.open(other.account, ECHO)
        await node.publish(TOPIC, b"lost")
        await node.disconnect(other.account)
        assert node.links() == ()


async def test_a_restarted_node_is_heard_again() -> None:
    """Its message numbers must not repeat, or its neighbours drop them as seen."""
    async with open_node(1) as node:
        frames = node.subscribe(TOPIC)
        for turn in range(3):
            async with open_node(2) as other:
                await other.dial(node.addresses[0])
                await until(lambda o=other: is_meshed(o, node))
                for number in range(5):
                    await other.publish(TOPIC, b"%d %d" % (turn, number))
                with trio.fail_after(5):
                    got = {(await frames.receive()).data for _ in range(5)}
                assert got == {b"%d %d" % (turn, number) for number in range(5)}
            await until(lambda: not node.links())


async def test_a_taken_port_is_an_error_in_one_line() -> None:
    async with open_node(1) as node:
        taken = node.addresses[0].split("/p2p/")[0]
        with pytest.raises(LocalError, match="address already in use; choose another"):
            async with open_node(2, taken):
                pass


@pytest.mark.parametrize(
    "listen",
    ["x", "", "/ip4/127.0.0.1/udp/1", "/dns/localhost/tcp/1", "/ip4/203.0.113.9/tcp/0", LOCAL + "/p2p/x"],
)
async def test_what_cannot_be_listened_on(listen: str) -> None:
    with pytest.raises(LocalError, match="cannot listen"):
        async with open_libp2p_transport(seed=bytes(32), listen=(listen,), topics=(TOPIC,), log=NoLog()):
            pass


async def test_a_node_that_only_dials_out_is_reached_over_its_link() -> None:
    async def echo(stream: Stream) -> None:
        while data := await stream.read(1000):
            await stream.write(data)

    async with open_node(1) as public, open_node(2, "") as hidden:
        hidden.serve(ECHO, echo)
        assert hidden.addresses == ()
        await hidden.dial(public.addresses[0])
        await until(lambda: bool(public.links()))
        stream = await public.open(hidden.account, ECHO)
        await stream.write(b"found you")
        assert await stream.read(20) == b"found you"


async def test_addresses_of_a_wildcard_are_real_ones() -> None:
    async with open_node(1, "/ip4/0.0.0.0/tcp/0") as node, open_node(2) as other:
        assert node.addresses
        assert not any("0.0.0.0" in address for address in node.addresses)
        for address in node.addresses:
            assert await other.dial(address) == node.account
            await other.disconnect(node.account)


async def test_announced_addresses_replace_the_local_ones() -> None:
    async with open_node(1, announce=("/dns4/node.example.org/tcp/4001",)) as node:
        (address,) = node.addresses
        assert address.startswith("/dns4/node.example.org/tcp/4001/p2p/12D3Koo")


async def test_names_are_resolved() -> None:
    async with open_node(1) as node, open_node(2) as other:
        with pytest.raises(DialError):
            await other.dial(node.addresses[0].replace("/ip4/127.0.0.1/", "/dns4/no.such.host.invalid/"))


async def test_a_silent_address_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DIAL_TIMEOUT_S", 0.5)
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = listener.socket.getsockname()[1]
    async with listener, open_node(1) as node, open_node(2) as other:
        peer = other.addresses[0].rsplit("/", 1)[1]
        start = trio.current_time()
        with pytest.raises(DialError, match="no answer"):
            await node.dial(f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer}")
        assert trio.current_time() - start < 2


async def test_a_closed_port_is_told_in_words_and_may_be_dialled_again_at_once() -> None:
    async with open_node(1) as node:
        async with open_node(2) as other:
            address = other.addresses[0]
        for _ in range(3):
            with pytest.raises(DialError, match="connection refused"):
                await node.dial(address)
        async with open_node(2, address.split("/p2p/")[0]) as other:
            start = trio.current_time()
            await node.dial(address)
            assert trio.current_time() - start < 1


async def test_both_dial_at_once() -> None:
    async with open_node(1) as a, open_node(2) as b:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(a.dial, b.addresses[0])
                nursery.start_soon(b.dial, a.addresses[0])
        assert len(a.links()) == len(b.links()) == 1
        await until(lambda: is_meshed(a, b) and is_meshed(b, a))
        frames = b.subscribe(TOPIC)
        await a.publish(TOPIC, b"x")
        with trio.fail_after(5):
            assert (await frames.receive()).data == b"x"


async def test_ends_leave_no_socket_and_no_task_behind() -> None:
    async def hold(stream: Stream) -> None:
        await stream.read(1)

    before = len(trio.lowlevel.current_root_task().child_nurseries)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        for turn in range(4):
            with trio.move_on_after(5 if turn % 2 else 0.4):
                async with open_node(1) as node, open_node(2) as other:
                    node.serve(ECHO, hold)
                    await other.dial(node.addresses[0])
                    await other.open(node.account, ECHO)
                    if turn % 2 == 0:
                        await trio.sleep_forever()
        gc.collect()
    assert len(trio.lowlevel.current_root_task().child_nurseries) == before


async def test_subscribers_see_the_end() -> None:
    async with open_node(1) as node:
        frames = node.subscribe(TOPIC)
    with pytest.raises(trio.EndOfChannel):
        await frames.receive()


async def test_round_trips_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PING_INTERVAL_S", 0.1)
    async with open_node(1) as node, open_node(2) as other:
        await node.dial(other.addresses[0])
        await until(lambda: all(link.round_trip_ms is not None for link in (*node.links(), *other.links())))
