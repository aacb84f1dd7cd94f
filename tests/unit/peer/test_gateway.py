"""The gateway over a scripted node: what it takes, what it refuses, how answers stream, who may call."""

from __future__ import annotations

import contextlib
import json
import random
from typing import Any

import httpx
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

import peer.gateway.app
from gossip_ledger.errors import LocalError
from peer.api import AskOptions, ErrorCode, Message, RequestError
from peer.capabilities import SeededEntropy
from peer.gateway.app import make_app, page_path
from peer.gateway.bodies import parse_object
from peer.gateway.guard import Gate
from peer.gateway.replies import STATUS, BodyError
from tests.unit.peer.fake_node import CREATOR, OTHER, PAYER, WORKER, FakeNode

TOKEN = "0123456789abcdef" * 4
BASE = "http://127.0.0.1:8480"
ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}


class StoppedClock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.now = 1_700_000_000

    def monotonic(self) -> float:
        return float(self.now)

    def now_s(self) -> int:
        return self.now


class World:
    """A gateway, its node and its clock."""

    def __init__(self, node: FakeNode | None = None) -> None:
        self.node = node or FakeNode()
        self.clock = StoppedClock()
        self.stops = 0
        self.app = make_app(
            self.node,
            token=TOKEN,
            version="1.2.3",
            clock=self.clock,
            entropy=SeededEntropy(random.Random(1)),
            stop=self._stop,
        )

    def _stop(self) -> None:
        self.stops += 1

    def client(self, **headers: str) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url=BASE, headers=headers)

    def keyed(self, **headers: str) -> httpx.AsyncClient:
        return self.client(Authorization=f"Bearer {TOKEN}", **headers)


@pytest.fixture
def world() -> World:
    return World()


def error_of(reply: httpx.Response) -> dict[str, Any]:
    error = reply.json()["error"]
    assert set(error) >= {"message", "type", "param", "code", "upkeep_code"}
    assert "\n" not in error["message"]
    return error


def events_of(reply: httpx.Response) -> list[Any]:
    assert reply.headers["content-type"].startswith("text/event-stream")
    lines = [part.removeprefix("data: ") for part in reply.text.split("\n\n") if part]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


# ------------------------------------------------------------------------------------------- answering


async def test_a_whole_chat_answer(world: World) -> None:
    async with world.keyed() as client:
        reply = await client.post("/v1/chat/completions", json=ASK)
    assert reply.status_code == 200
    body = reply.json()
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    assert body["created"] == world.clock.now
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello, wörld", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    assert body["upkeep"]["fee"] == sum(part["amount"] for part in body["upkeep"]["shares"])
    assert world.node.asked == [AskOptions(model="tiny", messages=(Message(role="user", content="Hi"),))]


async def test_a_streamed_chat_answer(world: World) -> None:
    async with world.keyed() as client:
        reply = await client.post("/v1/chat/completions", json={**ASK, "stream": True})
    *chunks, done = events_of(reply)
    assert done == "[DONE]"
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant"}
    assert chunks[0]["upkeep_event"]["routed"]["worker"] == WORKER
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "Hello, wörld"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 4 + ["stop"]
    assert chunks[-1]["usage"]["total_tokens"] == 8
    assert chunks[-1]["upkeep"]["receipt"] == ["ff" * 32]


async def test_usage_in_a_chunk_of_its_own(world: World) -> None:
    body = {**ASK, "stream": True, "stream_options": {"include_usage": True}}
    async with world.keyed() as client:
        *chunks, last, done = events_of(await client.post("/v1/chat/completions", json=body))
    assert done == "[DONE]"
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 8
    assert last["upkeep"]["fee"] == 100
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert all(chunk["usage"] is None for chunk in chunks if "upkeep_event" not in chunk)


async def test_a_failover_is_told_in_the_stream() -> None:
    world = World(FakeNode(fails_over_after=1))
    async with world.keyed() as client:
        chunks = events_of(await client.post("/v1/chat/completions", json={**ASK, "stream": True}))[:-1]
    told = [chunk["upkeep_event"] for chunk in chunks if "upkeep_event" in chunk]
    assert [next(iter(event)) for event in told] == ["routed", "failed_over", "routed"]
    assert told[1]["failed_over"] == {"worker": WORKER, "reason": "the stream broke", "tokens_delivered": 1}
    assert told[2]["routed"]["worker"] == OTHER


async def test_text_completions(world: World) -> None:
    body = {"model": "tiny", "prompt": ["Once"], "max_tokens": 7}
    async with world.keyed() as client:
        whole = (await client.post("/v1/completions", json=body)).json()
        *chunks, done = events_of(await client.post("/v1/completions", json={**body, "stream": True}))
    assert whole["object"] == "text_completion"
    assert whole["choices"][0]["text"] == "Hello, wörld"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Hello, wörld"
    assert done == "[DONE]"
    assert world.node.asked[0] == AskOptions(model="tiny", prompt="Once", max_tokens=7)


async def test_every_supported_field_reaches_the_node(world: World) -> None:
    body = {
        "model": "poet",
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "", "tool_calls": []},
            {"role": "user", "content": "c"},
        ],
        "max_completion_tokens": 9,
        "temperature": 0.7,
        "top_p": 0.95,
        "seed": 42,
        "stop": ["\n", "END"],
        "n": 1,
        "presence_penalty": 0.0,
        "tools": [],
        "response_format": {"type": "text"},
        "user": "someone",
        "logit_bias": None,
        "upkeep": {"max_fee": 1000, "worker": "aa", "policy": "cheapest"},
    }
    async with world.keyed() as client:
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    assert world.node.asked == [
        AskOptions(
            model="poet",
            messages=(
                Message(role="system", content="Be brief."),
                Message(role="user", content="ab"),
                Message(role="assistant", content=""),
                Message(role="user", content="c"),
            ),
            max_tokens=9,
            temperature_milli=700,
            top_p_milli=950,
            seed=42,
            stop=("\n", "END"),
            max_fee=1000,
            worker="aa",
            policy="cheapest",
        )
    ]


BAD_FIELDS: list[tuple[dict[str, object], str]] = [
    ({"n": 2}, "n"),
    ({"n": True}, "n"),
    ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"logprobs": True}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"functions": []}, "functions"),
    ({"audio": {}}, "audio"),
    ({"best_of": 1}, "best_of"),
    ({"xyzzy": 1}, "xyzzy"),
    ({"model": ""}, "model"),
    ({"model": None}, "model"),
    ({"model": 3}, "model"),
    ({"messages": []}, "messages"),
    ({"messages": "Hi"}, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "x", "name": "bob"}]}, "messages[0].name"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "x"}] * 1025}, "messages"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": 1.0}, "max_tokens"),
    ({"max_tokens": "9"}, "max_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**63}, "seed"),
    ({"stop": [""]}, "stop"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"stop": "x" * 257}, "stop"),
    ({"stream": 1}, "stream"),
    ({"stream_options": {"other": 1}}, "stream_options.other"),
    ({"upkeep": {"max_fee": -1}}, "upkeep.max_fee"),
    ({"upkeep": {"tip": 1}}, "upkeep.tip"),
    ({"upkeep": {"policy": "best"}}, "upkeep.policy"),
    ({"upkeep": 3}, "upkeep"),
]


@pytest.mark.parametrize(("change", "field"), BAD_FIELDS)
async def test_fields_are_refused_by_name(world: World, change: dict[str, object], field: str) -> None:
    async with world.keyed() as client:
        content = json.dumps({**ASK, **change})
        reply = await client.post(
            "/v1/chat/completions", content=content, headers={"Content-Type": "application/json"}
        )
    assert reply.status_code == 400
    error = error_of(reply)
    assert error["param"] == field
    assert error["message"].startswith(field + ": ")
    assert error["type"] == "invalid_request_error"
    assert world.node.asked == []


async def test_chat_fields_are_no_completion_fields(world: World) -> None:
    async with world.keyed() as client:
        for body, field in (
            ({"model": "tiny", "prompt": "x", "messages": []}, "messages"),
            ({"model": "tiny", "prompt": "x", "max_completion_tokens": 3}, "max_completion_tokens"),
            ({"model": "tiny", "prompt": ["a", "b"]}, "prompt"),
            ({"model": "tiny", "prompt": [1, 2]}, "prompt"),
            ({"model": "tiny"}, "prompt"),
            ({"model": "tiny", "prompt": "x", "suffix": "y"}, "suffix"),
        ):
            assert error_of(await client.post("/v1/completions", json=body))["param"] == field


# ---------------------------------------------------------------------------------------------- bodies


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{}", "text/plain", 415),
        (b"{}", "", 415),
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b'{"a": 1, "a": 2}', "application/json", 400),
        (b'{"a": NaN}', "application/json", 400),
        (b'{"temperature": 1e999, "model": "m", "messages": []}', "application/json", 400),
        (b"[" * 200_000, "application/json", 400),
        (b'{"a": ' + b"9" * 10_000 + b"}", "application/json", 400),
    ],
)
async def test_bodies_that_are_no_request(world: World, content: bytes, kind: str, status: int) -> None:
    async with world.keyed() as client:
        reply = await client.post("/v1/chat/completions", content=content, headers={"Content-Type": kind})
    assert reply.status_code == status
    error_of(reply)
    assert world.node.asked == []


@pytest.mark.parametrize(
    "data", [b'{"a": 1, "a": 2}', b'{"a": {"b": 1, "b": 1}}', b'{"a": NaN}', b"[]", b"1"]
)
def test_json_that_is_no_strict_object(data: bytes) -> None:
    with pytest.raises(BodyError):
        parse_object(data)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_an_object_or_a_body_error(data: bytes) -> None:
    with contextlib.suppress(BodyError):
        assert isinstance(parse_object(data), dict)


async def test_infinite_numbers_are_refused(world: World) -> None:
    content = json.dumps(ASK)[:-1] + ', "temperature": 1e999}'
    async with world.keyed() as client:
        reply = await client.post(
            "/v1/chat/completions", content=content, headers={"Content-Type": "application/json"}
        )
    assert error_of(reply)["param"] == "temperature"


# ---------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("code", list(ErrorCode))
@pytest.mark.parametrize("is_stream", [False, True])
async def test_errors_of_the_node_have_their_status(code: ErrorCode, is_stream: bool) -> None:
    world = World(FakeNode(fails=RequestError(code, "what; why; what to do", retry_after_ms=1500)))
    async with world.keyed() as client:
        reply = await client.post("/v1/chat/completions", json={**ASK, "stream": is_stream})
    assert reply.status_code == STATUS[code]
    error = error_of(reply)
    assert error["upkeep_code"] == code.value
    assert error["message"] == "what; why; what to do"
    assert reply.headers["retry-after"] == "2"
    assert world.app.state.gate is not None


async def test_an_error_after_the_first_text_ends_the_stream() -> None:
    world = World(FakeNode(fails_after=2))
    async with world.keyed() as client:
        chunks = events_of(await client.post("/v1/chat/completions", json={**ASK, "stream": True}))
        assert "[DONE]" not in chunks
        assert chunks[-1]["error"]["upkeep_code"] == "worker_lost"
        assert (await client.post("/v1/chat/completions", json=ASK)).status_code == 502


async def test_errors_of_this_machine_and_defects(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(account: str | None) -> dict[str, object]:
        raise LocalError("the disk is full; free some space")

    def broken() -> dict[str, object]:
        raise ZeroDivisionError

    monkeypatch.setattr(world.node, "balance", full)
    monkeypatch.setattr(world.node, "root", broken)
    async with world.keyed() as client:
        reply = await client.get("/api/ledger/balance")
        assert (reply.status_code, error_of(reply)["code"]) == (500, "local_error")
        reply = await client.get("/api/ledger/root")
        assert (reply.status_code, error_of(reply)["code"]) == (500, "internal_error")
        assert "ZeroDivision" not in reply.text
        assert error_of(await client.get("/nothing"))["code"] == "unknown_url"
        assert error_of(await client.get("/api/stop"))["code"] == "wrong_method"


async def test_more_questions_than_allowed_are_told_to_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peer.gateway.app, "ASKS_MAX", 2)
    world = World(FakeNode(waits=trio.Event()))
    statuses: list[int] = []

    async def ask(client: httpx.AsyncClient) -> None:
        statuses.append((await client.post("/v1/chat/completions", json=ASK)).status_code)

    async with world.keyed() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, client)
            nursery.start_soon(ask, client)
            await trio.testing.wait_all_tasks_blocked()
            reply = await client.post("/v1/chat/completions", json=ASK)
            assert (reply.status_code, error_of(reply)["upkeep_code"]) == (429, "busy")
            assert world.node.waits is not None
            world.node.waits.set()
        assert statuses == [200, 200]
        assert (await client.post("/v1/chat/completions", json=ASK)).status_code == 200


# -------------------------------------------------------------------------------------------- node api


async def test_reading_routes(world: World) -> None:
    async with world.keyed() as client:
        for path, expected in (
            ("/api/status", {"account": PAYER}),
            ("/api/peers", {}),
            ("/api/workers", {}),
            ("/api/models", {}),
            ("/api/ledger/balance", {"account": PAYER}),
            (f"/api/ledger/balance?account={WORKER}", {"account": WORKER}),
            ("/api/ledger/receipts?limit=7", {}),
            ("/api/ledger/payouts", {"fees": 100}),
            ("/api/answers/abc", {"id": "abc"}),
            ("/api/ledger/confirm?receipt=ff", {"receipt": "ff", "is_confirmed": True}),
            ("/api/ledger/root", {"records": 12}),
            ("/api/worker", {"standing": "open", "price_in": 1000}),
            ("/api/worker/earnings", {"uncollected": 60}),
            ("/api/ledger/explain?subject=tiny", {"subject": "tiny"}),
        ):
            reply = await client.get(path)
            assert reply.status_code == 200, path
            assert expected.items() <= reply.json().items()
        assert (await client.get("/api/ledger/receipts?limit=7")).json()["receipts"][0]["limit"] == 7
        for path, field in (
            ("/api/ledger/receipts?limit=0", "limit"),
            ("/api/ledger/receipts?limit=1001", "limit"),
            ("/api/ledger/receipts?limit=x", "limit"),
            ("/api/ledger/receipts?limit=1&limit=2", "limit"),
            ("/api/ledger/balance?acount=1", "acount"),
            ("/api/ledger/explain", "subject"),
        ):
            assert error_of(await client.get(path))["param"] == field


async def test_models_in_the_shape_of_openai(world: World) -> None:
    async with world.keyed() as client:
        body = (await client.get("/v1/models")).json()
        assert body["object"] == "list"
        assert [model["id"] for model in body["data"]] == ["poet", "tiny"]
        assert body["data"][0]["owned_by"] == CREATOR
        for name in ("poet", "22" * 32):
            assert (await client.get(f"/v1/models/{name}")).json()["id"] == "poet"
        reply = await client.get("/v1/models/absent")
        assert (reply.status_code, error_of(reply)["code"]) == (404, "model_not_found")


async def test_writing_routes(world: World) -> None:
    publish = {"name": "poet", "adapter": "/a", "split": [5000, 2000, 2000, 500, 500], "licence": "CC0-1.0"}
    async with world.keyed() as client:
        assert (await client.post("/api/quote", json=ASK)).json()["max_fee"] == 700
        assert (await client.post("/api/quote", json={"model": "tiny", "prompt": "x"})).status_code == 200
        assert (await client.post("/api/send", json={"to": WORKER, "amount": 5})).json()["id"] == "44" * 32
        assert (await client.post("/api/publish", json=publish)).json()["name"] == "poet"
        for path, body, field in (
            ("/api/send", {"to": WORKER, "amount": 0}, "amount"),
            ("/api/send", {"to": WORKER, "amount": 1.5}, "amount"),
            ("/api/send", {"to": WORKER[:8], "amount": 1}, "to"),
            ("/api/send", {"to": WORKER, "amount": 1, "memo": "x"}, "memo"),
            ("/api/publish", {**publish, "split": [1, 2, 3, 4, 5]}, "split"),
            ("/api/publish", {**publish, "split": [5000, 5000]}, "split"),
            ("/api/publish", {**publish, "nmae": "x"}, "nmae"),
            ("/api/stop", {"now": True}, "now"),
        ):
            reply = await client.post(path, json=body)
            assert (reply.status_code, error_of(reply)["param"]) == (400, field)
        assert world.node.sent == [(WORKER, 5)]
        assert world.node.published[0].split == (5000, 2000, 2000, 500, 500)
        assert world.stops == 0
        assert (await client.post("/api/stop", json={})).json() == {"stopping": True}
    assert world.stops == 1


async def test_metrics_and_health_are_open(world: World) -> None:
    async with world.client() as client:
        await client.get("/health")
        text = (await client.get("/metrics")).text
    assert "# TYPE upkeep_records_total counter\nupkeep_records_total 12.0\n" in text
    assert "# TYPE upkeep_links gauge\nupkeep_links 2.0\n" in text
    assert 'upkeep_gateway_replies_total{status="200"} 1.0' in text
    assert "upkeep_gateway_asks_running 0.0" in text


# ------------------------------------------------------------------------------------------ who may call

ALL_GUARDED = [
    ("GET", path)
    for path in (
        "/v1/models",
        "/v1/models/tiny",
        "/api/status",
        "/api/peers",
        "/api/workers",
        "/api/models",
        "/api/ledger/balance",
        "/api/ledger/receipts",
        "/api/ledger/payouts",
        "/api/ledger/root",
        "/api/ledger/explain",
        "/api/ledger/confirm",
        "/api/answers/ee",
        "/api/worker",
        "/api/worker/earnings",
    )
] + [
    ("POST", path)
    for path in (
        "/v1/chat/completions",
        "/v1/completions",
        "/api/quote",
        "/api/publish",
        "/api/send",
        "/api/stop",
        "/api/page",
        "/api/worker/price",
        "/api/worker/pause",
        "/api/worker/drain",
        "/api/worker/resume",
    )
]


def test_the_list_of_guarded_routes_is_complete(world: World) -> None:
    routes = {route.path for route in world.app.routes}  # type: ignore[attr-defined]
    assert routes - {path for _, path in ALL_GUARDED} == {
        "/", "/health", "/metrics", "/api/session", "/v1/models/{model:path}", "/api/answers/{answer}",
    }  # fmt: skip


@pytest.mark.parametrize(("method", "path"), ALL_GUARDED)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Bearer {TOKEN}0"},
        {"Authorization": "Bearer \u00e9"},
        {"Cookie": f"upkeep={TOKEN}"},
    ],
)
async def test_without_the_key_nothing(world: World, method: str, path: str, headers: dict[str, str]) -> None:
    async with world.client() as client:
        raw = {name: value.encode("utf-8") for name, value in headers.items()}
        reply = await client.request(method, path, json=ASK if method == "POST" else None, headers=raw)
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    assert "api-token" in error_of(reply)["message"]
    assert (world.node.asked, world.node.sent, world.stops) == ([], [], 0)


FOREIGN_HOSTS = [
    "evil.example",
    "evil.example:8480",
    "127.0.0.1.evil.example",
    "127.0.0.2:8480",
    "",
    "[::2]:8480",
    "[::1",
    "localhost.evil.example:8480",
]


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
@pytest.mark.parametrize("path", ["/", "/metrics", "/api/status", "/health"])
async def test_foreign_hosts(world: World, host: str, path: str) -> None:
    """A page whose own name was made to point here still sends its own name."""
    async with world.keyed(Host=host) as client:
        reply = await client.get(path)
    assert (reply.status_code, error_of(reply)["code"]) == (403, "foreign_host")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8480", "LocalHost:1", "[::1]:8480", "localhost"])
async def test_own_hosts(world: World, host: str) -> None:
    async with world.keyed(Host=host) as client:
        assert (await client.get("/api/status")).status_code == 200


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "https://127.0.0.1:8480",
        "http://127.0.0.1:8481",
        "http://127.0.0.1",
        "",
    ],
)
@pytest.mark.parametrize("path", ["/api/send", "/api/session", "/v1/chat/completions"])
async def test_foreign_origins(world: World, origin: str, path: str) -> None:
    async with world.keyed(Origin=origin) as client:
        reply = await client.post(path, json={"to": WORKER, "amount": 1})
    assert (reply.status_code, error_of(reply)["code"]) == (403, "foreign_origin")
    assert world.node.sent == []


async def test_a_cross_site_fetch_without_origin(world: World) -> None:
    for site in ("cross-site", "same-site"):
        async with world.keyed(**{"Sec-Fetch-Site": site}) as client:
            assert (await client.get("/api/status")).status_code == 403
            assert (await client.get("/")).status_code == 200
    async with world.keyed(**{"Sec-Fetch-Site": "same-origin"}) as client:
        assert (await client.get("/api/status")).status_code == 200


async def open_page(world: World, client: httpx.AsyncClient) -> dict[str, str]:
    """What the page does when it is opened; returns the header it then sends."""
    ticket = page_path(world.app).removeprefix("/#")
    reply = await client.post("/api/session", json={"ticket": ticket}, headers={"Origin": BASE})
    assert reply.status_code == 200
    cookie = reply.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    again = await client.post("/api/session", json={"ticket": ticket}, headers={"Origin": BASE})
    assert (again.status_code, error_of(again)["code"]) == (401, "invalid_ticket")
    return {"x-upkeep-page": reply.json()["page_key"]}


async def test_the_page_opens_once_and_then_may_call(world: World) -> None:
    async with world.client() as client:
        page = await open_page(world, client)
        assert (await client.get("/api/status", headers=page)).status_code == 200
        sent = {"to": WORKER, "amount": 1}
        posted = await client.post("/api/send", json=sent, headers={**page, "Origin": BASE})
        assert posted.status_code == 200
        for headers in (page, {"Origin": BASE}, {**page, "Origin": "http://evil.example"}):
            assert (await client.post("/api/send", json=sent, headers=headers)).status_code in (401, 403)
        wrong = {"x-upkeep-page": "0" * 64}
        assert (await client.get("/api/status", headers=wrong)).status_code == 401
        client.cookies.clear()
        assert (await client.get("/api/status", headers=page)).status_code == 401
    assert len(world.node.sent) == 1


async def test_sessions_end_and_cannot_be_stretched(world: World) -> None:
    async with world.client() as client:
        page = await open_page(world, client)
        name, value = next(iter(client.cookies.items()))
        expiry, rest = value.split(".", 1)
        client.cookies.clear()

        async def status_with(cookie: str) -> int:
            headers = {**page, "Cookie": f"{name}={cookie}"}
            return (await client.get("/api/status", headers=headers)).status_code

        assert await status_with(value) == 200
        stretched = (f"{int(expiry) + 9}.{rest}", f"9{expiry}.{rest}")
        for forged in (*stretched, "..", "", "x", value + "0", value[:-1], value[:-64] + "0" * 64):
            assert await status_with(forged) == 401
        world.clock.now += 30 * 86_400 - 1
        assert await status_with(value) == 200
        world.clock.now += 1
        assert await status_with(value) == 401
        for forged in stretched:
            assert await status_with(forged) == 401


async def test_tickets_lapse_and_are_few(world: World) -> None:
    gate: Gate = world.app.state.gate
    old = gate.issue_ticket()
    world.clock.now += 12 * 3600
    assert gate.exchange(old) is None
    tickets = [gate.issue_ticket() for _ in range(33)]
    assert gate.exchange(tickets[0]) is None
    assert gate.exchange(tickets[1]) is not None
    assert gate.exchange("") is None


async def test_a_ticket_over_the_api(world: World) -> None:
    async with world.keyed() as client:
        path = (await client.post("/api/page", json={})).json()["path"]
        reply = await client.post("/api/session", json={"ticket": path.removeprefix("/#")})
        assert reply.status_code == 200


async def test_the_page_runs_nothing_but_itself(world: World) -> None:
    async with world.client() as client:
        reply = await client.get("/")
    assert reply.status_code == 200
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["x-content-type-options"] == "nosniff"
    for outside in ("http://", "https://", "//cdn", "@import", "url("):
        assert outside not in reply.text.replace("http://www.w3.org/2000/svg", "")
    for inline in (" onclick=", " onload=", " style="):
        assert inline not in reply.text
