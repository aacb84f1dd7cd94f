"""The gateway's application: its routes over a `NodeApi`, behind the gate.

Left out: sockets and the server (`server.py`), who may call (`guard.py`), how an answer streams
(`answers.py`). Every route is in docs/protocol/gateway.md.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Awaitable, Callable
from functools import partial
from importlib import resources
from typing import Any, Final, final

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gossip_ledger.errors import UpkeepError
from peer.api import AskOptions, ErrorCode, NodeApi, RequestError
from peer.capabilities import Clock, Entropy
from peer.gateway import bodies
from peer.gateway.answers import AskResponse, ChatShape, Shape, TextShape
from peer.gateway.bodies import Fields, read_json
from peer.gateway.guard import LOOPBACK_HOSTS, Gate, GateMiddleware
from peer.gateway.metrics import GatewayCounts, render
from peer.gateway.replies import FieldError, error_response, failure_response
from peer.limits import ASKS_MAX, PRICE_MAX, RECEIPTS_SHOWN_MAX, SESSION_S
from peer.trade import Standing

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
BUSY_RETRY_MS: Final = 1_000


def make_app(
    node: NodeApi,
    *,
    token: str,
    allowed_hosts: frozenset[str] = LOOPBACK_HOSTS,
    version: str,
    clock: Clock,
    entropy: Entropy,
    stop: Callable[[], None],
) -> Starlette:
    """The application. `token` is the local key; `stop` ends the daemon. `app.state.gate` is its gate."""
    gate = Gate(token=token, allowed_hosts=allowed_hosts, clock=clock, entropy=entropy)
    counts = GatewayCounts()
    gateway = _Gateway(node, gate, counts, version=version, clock=clock, entropy=entropy, stop=stop)
    app = Starlette(
        routes=gateway.routes(),
        middleware=[Middleware(_CountMiddleware, counts=counts), Middleware(GateMiddleware, gate=gate)],
        exception_handlers={UpkeepError: _on_failure, HTTPException: _on_http, Exception: _on_bug},
    )
    app.state.gate = gate
    return app


def page_path(app: Starlette) -> str:
    """Path and fragment that open the page once, with a new ticket."""
    return f"/#{app.state.gate.issue_ticket()}"


@final
class _Gateway:
    """The endpoints. Holds nothing but what it was given and the running count."""

    def __init__(
        self,
        node: NodeApi,
        gate: Gate,
        counts: GatewayCounts,
        *,
        version: str,
        clock: Clock,
        entropy: Entropy,
        stop: Callable[[], None],
    ) -> None:
        self._node = node
        self._gate = gate
        self._counts = counts
        self._version = version
        self._clock = clock
        self._entropy = entropy
        self._stop = stop
        self._page, self._page_policy = _load_page()

    def routes(self) -> list[Route]:
        def get(path: str, endpoint: Callable[[Request], Awaitable[Response]]) -> Route:
            return Route(path, _bound(endpoint), methods=["GET"])

        def post(path: str, endpoint: Callable[[Request], Awaitable[Any]]) -> Route:
            return Route(path, _bound(endpoint), methods=["POST"])

        return [
            get("/", self.page),
            get("/health", self.health),
            get("/metrics", self.metrics),
            post("/api/session", self.open_session),
            post("/api/page", self.issue_page),
            post("/v1/chat/completions", self.chat),
            post("/v1/completions", self.complete),
            get("/v1/models", self.list_models),
            get("/v1/models/{model:path}", self.show_model),
            get("/api/status", self.status),
            get("/api/peers", self.peers),
            get("/api/workers", self.workers),
            get("/api/models", self.models),
            get("/api/answers/{answer}", self.answer),
            get("/api/ledger/balance", self.balance),
            get("/api/ledger/receipts", self.receipts),
            get("/api/ledger/payouts", self.payouts),
            get("/api/ledger/root", self.root),
            get("/api/ledger/explain", self.explain),
            get("/api/ledger/confirm", self.confirm),
            get("/api/worker", self.worker),
            get("/api/worker/earnings", self.earnings),
            post("/api/worker/price", self.price),
            post("/api/worker/pause", self.pause),
            post("/api/worker/drain", self.drain),
            post("/api/worker/resume", self.resume),
            post("/api/quote", self.quote),
            post("/api/publish", self.publish),
            post("/api/send", self.send),
            post("/api/stop", self.stop),
        ]

    async def page(self, request: Request) -> Response:
        del request
        return HTMLResponse(self._page, headers={"content-security-policy": self._page_policy})

    async def health(self, request: Request) -> Response:
        del request
        return JSONResponse({"ok": True, "version": self._version})

    async def metrics(self, request: Request) -> Response:
        del request
        return Response(render(self._node, self._counts), media_type=METRICS_TYPE)

    async def open_session(self, request: Request) -> Response:
        fields = Fields(await read_json(request))
        ticket = fields.need("ticket", bodies.text(128))
        fields.end()
        session = self._gate.exchange(ticket)
        if session is None:
            message = "this address of the page was used or is too old; run `upkeep page` for a new one"
            return error_response(401, "invalid_ticket", message)
        response = JSONResponse({"page_key": session.page_key})
        response.set_cookie(
            self._gate.cookie_name,
            session.cookie,
            max_age=SESSION_S,
            path="/",
            httponly=True,
            samesite="strict",
        )
        return response

    async def issue_page(self, request: Request) -> Response:
        Fields(await read_json(request)).end()
        return JSONResponse({"path": f"/#{self._gate.issue_ticket()}"})

    async def chat(self, request: Request) -> AskResponse:
        return await self._ask(request, bodies.chat_options, ChatShape())

    async def complete(self, request: Request) -> AskResponse:
        return await self._ask(request, bodies.completion_options, TextShape())

    async def list_models(self, request: Request) -> Response:
        del request
        data = [self._openai_model(model) for model in self._node.models()]
        return JSONResponse({"object": "list", "data": data})

    async def show_model(self, request: Request) -> Response:
        name = request.path_params["model"]
        for model in self._node.models():
            if name in (model.get("name"), model.get("id")):
                return JSONResponse(self._openai_model(model))
        raise RequestError(ErrorCode.UNKNOWN_MODEL, f"no model is called {name[:80]}; see /v1/models")

    async def status(self, request: Request) -> Response:
        del request
        return JSONResponse(self._node.status())

    async def peers(self, request: Request) -> Response:
        del request
        return JSONResponse({"peers": self._node.peers()})

    async def workers(self, request: Request) -> Response:
        del request
        return JSONResponse({"workers": self._node.workers()})

    async def models(self, request: Request) -> Response:
        del request
        return JSONResponse({"models": self._node.models()})

    async def answer(self, request: Request) -> Response:
        return JSONResponse(self._node.answer(request.path_params["answer"]))

    async def balance(self, request: Request) -> Response:
        query = _query(request)
        account = query.take("account", bodies.text(64, minimum=1), None)
        query.end()
        return JSONResponse(self._node.balance(account))

    async def receipts(self, request: Request) -> Response:
        query = _query(request)
        account = query.take("account", bodies.text(64, minimum=1), None)
        limit = query.take("limit", _limit, 50)
        query.end()
        return JSONResponse({"receipts": self._node.receipts(account, limit)})

    async def payouts(self, request: Request) -> Response:
        del request
        return JSONResponse(self._node.payouts())

    async def root(self, request: Request) -> Response:
        del request
        return JSONResponse(self._node.root())

    async def explain(self, request: Request) -> Response:
        query = _query(request)
        subject = query.need("subject", bodies.text(256, minimum=1))
        query.end()
        return JSONResponse(self._node.explain(subject))

    async def confirm(self, request: Request) -> Response:
        query = _query(request)
        receipt = query.need("receipt", bodies.text(64, minimum=1))
        query.end()
        return JSONResponse(await self._node.confirm(receipt))

    async def quote(self, request: Request) -> Response:
        fields = Fields(await read_json(request))
        options = bodies.chat_options(fields) if "messages" in fields else bodies.completion_options(fields)
        fields.end()
        return JSONResponse(await self._node.quote(options))

    async def publish(self, request: Request) -> Response:
        fields = Fields(await read_json(request))
        wanted = bodies.publish_request(fields)
        fields.end()
        return JSONResponse(await self._node.publish(wanted))

    async def send(self, request: Request) -> Response:
        fields = Fields(await read_json(request))
        to = fields.need("to", bodies.text(64, minimum=64))
        amount = fields.need("amount", bodies.integer(1, bodies.MAX_AMOUNT))
        fields.end()
        return JSONResponse(await self._node.send(to, amount))

    async def worker(self, request: Request) -> Response:
        del request
        return JSONResponse(self._node.worker())

    async def earnings(self, request: Request) -> Response:
        del request
        return JSONResponse(self._node.earnings())

    async def price(self, request: Request) -> Response:
        fields = Fields(await read_json(request))
        price_in = fields.take("price_in", bodies.integer(0, PRICE_MAX), None)
        price_out = fields.take("price_out", bodies.integer(0, PRICE_MAX), None)
        fields.end()
        if price_in is None and price_out is None:
            raise FieldError("price_in", "name a new price_in, a new price_out, or both")
        return JSONResponse(await self._node.set_prices(price_in, price_out))

    async def pause(self, request: Request) -> Response:
        return await self._stand(request, Standing.PAUSED)

    async def drain(self, request: Request) -> Response:
        return await self._stand(request, Standing.DRAINING)

    async def resume(self, request: Request) -> Response:
        return await self._stand(request, Standing.OPEN)

    async def _stand(self, request: Request, standing: Standing) -> Response:
        Fields(await read_json(request)).end()
        return JSONResponse(self._node.set_standing(standing))

    async def stop(self, request: Request) -> Response:
        Fields(await read_json(request)).end()

        async def stop() -> None:
            self._stop()

        return JSONResponse({"stopping": True}, background=BackgroundTask(stop))

    async def _ask(self, request: Request, read: Callable[[Fields], AskOptions], shape: Shape) -> AskResponse:
        fields = Fields(await read_json(request))
        is_stream, has_usage = bodies.stream_options(fields)
        options = read(fields)
        fields.end()
        if self._counts.asks_running >= ASKS_MAX:
            message = f"{ASKS_MAX} questions are being answered here already; come back in a moment"
            raise RequestError(ErrorCode.BUSY, message, retry_after_ms=BUSY_RETRY_MS)
        self._counts.asks_running += 1
        return AskResponse(
            self._node,
            options,
            shape,
            is_stream=is_stream,
            has_usage=has_usage,
            created_s=self._clock.now_s(),
            number=self._entropy.token(12).hex(),
            on_end=self._end_ask,
        )

    def _end_ask(self) -> None:
        self._counts.asks_running -= 1

    def _openai_model(self, model: dict[str, object]) -> dict[str, object]:
        return {
            "id": model.get("name"),
            "object": "model",
            "created": 0,
            "owned_by": model.get("creator"),
            "upkeep": model,
        }


@final
class _CountMiddleware:
    """Counts replies by status."""

    def __init__(self, app: ASGIApp, counts: GatewayCounts) -> None:
        self._app = app
        self._counts = counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._counts.replies[message["status"]] += 1
            await send(message)

        await self._app(scope, receive, send_counted)


def _bound(endpoint: Callable[[Request], Awaitable[Any]]) -> Callable[[Request], Awaitable[Any]]:
    """Starlette takes plain functions; a bound method wrapped in `partial` counts as one."""
    return partial(endpoint)


def _query(request: Request) -> Fields:
    found: dict[str, object] = {}
    for name, value in request.query_params.multi_items():
        if name in found:
            raise FieldError(name[:64], "stands twice in the query")
        found[name] = value
    return Fields(found)


def _limit(value: object) -> int:
    assert isinstance(value, str)
    if not re.fullmatch(r"[0-9]{1,6}", value, re.ASCII) or not 1 <= int(value) <= RECEIPTS_SHOWN_MAX:
        raise ValueError(f"must be an integer from 1 to {RECEIPTS_SHOWN_MAX}")
    return int(value)


async def _on_failure(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, UpkeepError)
    return failure_response(error)


async def _on_http(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return error_response(
            404, "unknown_url", "there is nothing at this address; see docs/protocol/gateway.md"
        )
    if error.status_code == 405:
        return error_response(405, "wrong_method", "this address does not take that method")
    return error_response(error.status_code, "http_error", str(error.detail))


async def _on_bug(request: Request, error: Exception) -> Response:
    """The server logs the trace; the caller learns only that it was our fault."""
    del request, error
    return error_response(
        500, "internal_error", "this is a defect of upkeep; the daemon's log has the details"
    )


def _load_page() -> tuple[str, str]:
    """The page, and the policy that runs only its own script and style and calls only this gateway."""
    page = (resources.files("peer.gateway") / "page.html").read_text(encoding="utf-8")

    def hashes(tag: str) -> str:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert found, f"the page has a <{tag}>"
        digests = [base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in found]
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    policy = (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self';"
        " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, policy
