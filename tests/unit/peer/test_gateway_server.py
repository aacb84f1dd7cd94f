"""The gateway on real sockets: hang-ups, slow and hostile clients, ports in use, and its end."""

from __future__ import annotations

import contextlib
import json
import random
import socket
from collections.abc import AsyncIterator

import httpx
import pytest
import trio
from starlette.applications import Starlette

import peer.gateway.answers
import peer.gateway.bodies
import peer.gateway.server
from gossip_ledger.errors import LocalError
from peer.capabilities import SeededEntropy, SystemClock
from peer.gateway.app import make_app
from peer.gateway.server import allowed_hosts, base_url, open_socket, serve_gateway
from tests.unit.peer.fake_node import FakeNode

TOKEN = "0123456789abcdef" * 4
ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
KEY = {"Authorization": f"Bearer {TOKEN}"}


def make(node: FakeNode) -> Starlette:
    return make_app(
        node,
        token=TOKEN,
        version="1",
        clock=SystemClock(),
        entropy=SeededEntropy(random.Random(1)),
        stop=lambda: None,
    )


@contextlib.asynccontextmanager
async def running(node: FakeNode) -> AsyncIterator[str]:
    async with trio.open_nursery() as nursery:
        url = await nursery.start(serve_gateway, make(node), open_socket("127.0.0.1:0"))
        with trio.fail_after(20):
            yield url
        nursery.cancel_scope.cancel()


async def connect(url: str) -> trio.SocketStream:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return await trio.open_tcp_stream(host, int(port))


def request_bytes(path: str, body: bytes, url: str) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {url.removeprefix('http://')}\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def test_streaming_text_arrives_as_it_is_made() -> None:
    node = FakeNode(waits=trio.Event())
    assert node.waits is not None
    async with running(node) as url, httpx.AsyncClient(headers=KEY, timeout=10) as client:
        async with client.stream("POST", f"{url}/v1/chat/completions", json={**ASK, "stream": True}) as reply:
            lines = reply.aiter_lines()
            first = [json.loads((await anext(lines)).removeprefix("data: ")), await anext(lines)]
            first.append(json.loads((await anext(lines)).removeprefix("data: ")))
            assert first[2]["choices"][0]["delta"]["content"] == "Hello"
            node.waits.set()
            rest = [line async for line in lines]
        assert "data: [DONE]" in rest
        assert "date" in reply.headers
        assert "server" not in reply.headers


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_hang_up_cancels_the_question(is_stream: bool) -> None:
    node = FakeNode(waits=trio.Event())
    async with running(node) as url:
        stream = await connect(url)
        body = json.dumps({**ASK, "stream": is_stream}).encode()
        await stream.send_all(request_bytes("/v1/chat/completions", body, url))
        while not node.asked:
            await trio.sleep(0.01)
        if is_stream:
            while b"Hello" not in await stream.receive_some(65536):
                pass
        await stream.aclose()
        while not node.cancelled:
            await trio.sleep(0.01)
        async with httpx.AsyncClient(headers=KEY) as client:
            text = (await client.get(f"{url}/metrics")).text
        assert "upkeep_gateway_asks_running 0.0" in text


async def test_a_client_that_reads_nothing_counts_as_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer.gateway.answers, "SEND_S_MAX", 0.3)
    monkeypatch.setattr(peer.gateway.server, "GATEWAY_STALL_MS", 1_000)
    node = FakeNode(texts=("x" * 1_000_000,) * 50)
    async with running(node) as url:
        stream = await connect(url)
        body = json.dumps({**ASK, "stream": True}).encode()
        await stream.send_all(request_bytes("/v1/chat/completions", body, url))
        while not node.asked:
            await trio.sleep(0.01)
        with trio.fail_after(15):
            async with httpx.AsyncClient(headers=KEY) as client:
                while "asks_running 0.0" not in (await client.get(f"{url}/metrics")).text:
                    await trio.sleep(0.1)
        await stream.aclose()


async def test_the_end_of_the_node_does_not_wait_for_a_client_that_reads_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peer.gateway.server, "GATEWAY_STALL_MS", 500)
    node = FakeNode(texts=("x" * 1_000_000,) * 50)
    with trio.fail_after(15):
        async with running(node) as url:
            stream = await connect(url)
            body = json.dumps({**ASK, "stream": True}).encode()
            await stream.send_all(request_bytes("/v1/chat/completions", body, url))
            while not node.asked:
                await trio.sleep(0.01)
            await trio.sleep(0.2)
    await stream.aclose()


async def test_bodies_too_large_or_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer.gateway.bodies, "BODY_S_MAX", 0.2)
    async with running(FakeNode()) as url, httpx.AsyncClient(headers=KEY) as client:
        headers = {"Content-Type": "application/json"}
        reply = await client.post(f"{url}/api/send", content=b" " * ((1 << 20) + 1), headers=headers)
        assert (reply.status_code, reply.json()["error"]["code"]) == (413, "body_too_large")
        stream = await connect(url)
        await stream.send_all(request_bytes("/api/send", b"{" + b" " * 99, url)[:-50])
        answer = b""
        while b"body_too_slow" not in answer:
            answer += await stream.receive_some(65536)
        assert answer.startswith(b"HTTP/1.1 408")
        await stream.aclose()


async def test_garbage_does_not_end_the_gateway() -> None:
    rng = random.Random(7)
    good = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    attacks = [rng.randbytes(rng.randrange(1, 400)) for _ in range(20)]
    for _ in range(60):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        attacks.append(bytes(data))
    attacks += [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + rng.randbytes(100),
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: !!!!\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        b"GET /%ff%00 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"POST /api/session HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
        b"CONNECT evil:80 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    ]
    async with running(FakeNode()) as url:
        for attack in attacks:
            stream = await connect(url)
            with contextlib.suppress(trio.BrokenResourceError), trio.move_on_after(0.05):
                await stream.send_all(attack)
                await stream.receive_some(1000)
            await stream.aclose()
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{url}/health")).status_code == 200


async def test_a_failing_server_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    failures = 0
    real = peer.gateway.server.serve

    async def fails_twice(*args: object, **options: object) -> None:
        nonlocal failures
        failures += 1
        if failures <= 2:
            raise ExceptionGroup("defect", [KeyError("x")])
        await real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(peer.gateway.server, "serve", fails_twice)
    async with running(FakeNode()) as url, httpx.AsyncClient() as client:
        assert (await client.get(f"{url}/health", timeout=10)).status_code == 200
    assert failures == 3


def test_a_port_in_use_and_wrong_hosts() -> None:
    with open_socket("127.0.0.1:0") as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LocalError, match=r"cannot listen on .* choose another with --bind") as error:
            open_socket(f"127.0.0.1:{port}")
        assert "\n" not in str(error.value)
    with pytest.raises(LocalError, match="cannot listen"):
        open_socket("192.0.2.1:1")


def test_addresses() -> None:
    with open_socket("127.0.0.1:0") as listener:
        assert base_url(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
    with open_socket("0.0.0.0:0") as listener:
        assert base_url(listener).startswith("http://127.0.0.1:")
    if socket.has_ipv6:
        with contextlib.suppress(LocalError), open_socket("[::1]:0") as listener:
            assert base_url(listener).startswith("http://[::1]:")
    assert allowed_hosts("10.1.2.3:80") == {"127.0.0.1", "localhost", "::1", "10.1.2.3"}
