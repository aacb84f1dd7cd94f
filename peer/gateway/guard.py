"""Who may call the gateway: checks on Host, Origin and key, before any route sees a request.

- **Host** must name this machine as the configuration knows it, so a web page cannot reach the gateway by
  pointing its own domain at 127.0.0.1 (DNS rebinding).
- **Origin**, where a browser sends it, must be the gateway's own; no other site's page may call anything.
- **Key**: every route but the page, its session exchange, `/health` and `/metrics` needs the local key as
  `Authorization: Bearer`, or a session of the page.

A session begins with a one-time ticket from the command line. It has two halves: a cookie (HttpOnly,
SameSite=Strict) and a page key that the page keeps and sends as a header. Cookies are shared between the
ports of a host, so the cookie alone would be readable by any other local server the browser visits.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Final, final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from peer.capabilities import Clock, Entropy
from peer.gateway.replies import error_response
from peer.limits import SESSION_S, TICKET_S, TICKETS_MAX

LOOPBACK_HOSTS: Final = frozenset({"127.0.0.1", "localhost", "::1"})
PUBLIC_PATHS: Final = frozenset({"/", "/health", "/metrics", "/api/session"})
PAGE_KEY_HEADER: Final = "x-upkeep-page"
_SAFE_METHODS: Final = frozenset({"GET", "HEAD"})
_HEADERS: Final[Mapping[str, str]] = {
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The two halves of a page's session."""

    cookie: str
    page_key: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a request goes no further."""

    status: int
    code: str
    message: str


@final
class Gate:
    """Decides about requests and hands out sessions. Keeps only tickets that nobody used yet."""

    def __init__(self, *, token: str, allowed_hosts: frozenset[str], clock: Clock, entropy: Entropy) -> None:
        assert len(token) >= 32, "a local key is long"
        self._token = token.encode()
        self._hosts = frozenset(host.lower() for host in allowed_hosts)
        self._clock = clock
        self._entropy = entropy
        self._tickets: dict[str, int] = {}
        self.cookie_name = "upkeep_" + hashlib.sha256(b"cookie" + self._token).hexdigest()[:12]
        """Differs between nodes, since their gateways may share a host name."""

    def issue_ticket(self) -> str:
        """A one-time ticket for the page; the oldest unused one lapses when there are too many."""
        while len(self._tickets) >= TICKETS_MAX:
            del self._tickets[next(iter(self._tickets))]
        ticket = self._entropy.token(24).hex()
        self._tickets[ticket] = self._clock.now_s() + TICKET_S
        return ticket

    def exchange(self, ticket: str) -> Session | None:
        """A session for a ticket, once."""
        expiry = self._tickets.pop(ticket, 0)
        now = self._clock.now_s()
        if now >= expiry:
            return None
        name = f"{now + SESSION_S}.{self._entropy.token(16).hex()}"
        return Session(cookie=f"{name}.{self._mac('session', name)}", page_key=self._mac("page", name))

    def judge(self, method: str, path: str, headers: Headers) -> Refusal | None:
        """Why a request must not pass; None lets it."""
        host = headers.get("host", "")
        if _host_name(host) not in self._hosts:
            message = f"this gateway does not answer to the host name {host[:80]!r}; use its own address"
            return Refusal(status=403, code="foreign_host", message=message)
        origin = headers.get("origin")
        if origin is not None and origin.lower() != f"http://{host}".lower():
            message = "pages of other sites may not use this gateway"
            return Refusal(status=403, code="foreign_origin", message=message)
        if headers.get("sec-fetch-site", "none") in ("cross-site", "same-site") and path != "/":
            message = "pages of other sites may not use this gateway"
            return Refusal(status=403, code="foreign_origin", message=message)
        if path in PUBLIC_PATHS or self._has_key(headers) or self._has_session(method, headers):
            return None
        return Refusal(
            status=401,
            code="invalid_api_key",
            message="this needs the local key: send the contents of the home's api-token file as"
            " `Authorization: Bearer`, or open the page anew with `upkeep page`",
        )

    def _has_key(self, headers: Headers) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._token)

    def _has_session(self, method: str, headers: Headers) -> bool:
        if method not in _SAFE_METHODS and "origin" not in headers:
            return False
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(self.cookie_name)
        except CookieError:
            return False
        name, _, mac = (morsel.value if morsel else "").rpartition(".")
        expiry = name.partition(".")[0]
        if not (expiry.isascii() and expiry.isdigit() and len(expiry) < 16):
            return False
        is_ours = hmac.compare_digest(mac.encode(), self._mac("session", name).encode())
        page_key = headers.get(PAGE_KEY_HEADER, "").encode()
        is_page = hmac.compare_digest(page_key, self._mac("page", name).encode())
        return is_ours and is_page and self._clock.now_s() < int(expiry)

    def _mac(self, kind: str, name: str) -> str:
        return hmac.new(self._token, f"upkeep/1/{kind}\0{name}".encode(), "sha256").hexdigest()


@final
class GateMiddleware:
    """Asks the gate about every request, and adds the headers that every response carries."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        headers = Headers(scope=scope)
        refusal = self._gate.judge(scope["method"], scope["path"], headers)
        if refusal is None:
            await self._app(scope, receive, send_guarded)
            return
        response = error_response(refusal.status, refusal.code, refusal.message)
        await response(scope, receive, send_guarded)


def _host_name(host: str) -> str:
    """The name in a Host header, without the port; an IPv6 address without its brackets."""
    if host.startswith("["):
        name, bracket, _ = host[1:].partition("]")
        return name.lower() if bracket else ""
    return host.partition(":")[0].lower()
