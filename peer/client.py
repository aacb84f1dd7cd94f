"""The command line's way to the running daemon: HTTP on loopback with the home's local key.

Every failure is a `LocalError` or `DaemonError` of one line that says what to do.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self, cast, final

import httpx

from gossip_ledger.errors import LocalError, UpkeepError
from peer.config import Home
from peer.keys import read_secret
from peer.run_file import read_run_file

CONNECT_S_MAX: Final = 5
REPLY_S_MAX: Final = 120
"""Longest silence; an answer's first token may wait behind others."""
LINE_CHARS_MAX: Final = 4 << 20


@final
class DaemonError(UpkeepError):
    """The daemon refused a request; the message is its own."""

    def __init__(self, message: str, *, code: str, status: int) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


@final
class DaemonClient:
    """Calls to one daemon. Use it in a `with`."""

    def __init__(self, home: Home) -> None:
        """Raises `LocalError` where no daemon of this home is known."""
        run = read_run_file(home)
        if run is None:
            raise LocalError(f"no daemon runs for {home.path}; start one with `upkeep up`")
        token = read_secret(home.api_token, bytes_max=4096).strip()
        self.url = run.gateway
        self.pid = run.pid
        self._client = httpx.Client(
            base_url=run.gateway,
            headers={"Authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(REPLY_S_MAX, connect=CONNECT_S_MAX),
            trust_env=False,  # a proxy must never see the local key
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def get(self, path: str, **query: str | int | None) -> dict[str, Any]:
        """A JSON object. Raises `LocalError` or `DaemonError`."""
        given = {name: value for name, value in query.items() if value is not None}
        return self._call("GET", path, params=given)

    def post(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        """Posts JSON; returns the JSON object that comes back. Raises `LocalError` or `DaemonError`."""
        return self._call("POST", path, json=body)

    def stream(self, path: str, body: Mapping[str, object]) -> Generator[dict[str, Any]]:
        """The chunks of a streamed answer. Closing the iterator hangs up. Raises like `post`."""
        with self._reached(), self._client.stream("POST", path, json=body) as reply:
            if not reply.is_success:
                reply.read()
                raise _refusal(reply)
            is_whole = False
            for line in reply.iter_lines():
                if line == "data: [DONE]":
                    is_whole = True
                elif line.startswith("data: "):
                    yield _chunk(line)
            if not is_whole:
                raise LocalError("the daemon ended in the middle of the answer; see its log, then ask again")

    def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        with self._reached():
            reply = self._client.request(method, path, **options)
        if not reply.is_success:
            raise _refusal(reply)
        try:
            return cast("dict[str, Any]", reply.json())
        except ValueError as error:
            raise LocalError(f"{self.url} is not a gateway of upkeep; restart the daemon") from error

    @contextmanager
    def _reached(self) -> Generator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise LocalError(f"no daemon answers at {self.url}; start it with `upkeep up`") from error
        except httpx.TimeoutException as error:
            what = f"the daemon at {self.url} did not answer within {REPLY_S_MAX} s; see its log"
            raise LocalError(what) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise LocalError(f"the daemon at {self.url} hung up; see its log, then try again") from error


def _chunk(line: str) -> dict[str, Any]:
    chunk = json.loads(line.removeprefix("data: "))
    if "error" in chunk:
        error = chunk["error"]
        raise DaemonError(error["message"], code=error["upkeep_code"], status=500)
    return chunk


def _refusal(reply: httpx.Response) -> UpkeepError:
    try:
        error = reply.json()["error"]
        message, code = str(error["message"]), str(error["upkeep_code"])
    except (ValueError, KeyError, TypeError):
        return LocalError(f"the daemon answered with status {reply.status_code}; see its log")
    return DaemonError(" ".join(message.split()), code=code, status=reply.status_code)
