"""Request bodies, read strictly: bounded, JSON, every field known and of its type, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NoReturn, TypeVar, cast, final

import trio
from starlette.requests import Request

from peer.api import AskOptions, Message, PublishRequest
from peer.gateway.replies import BodyError, FieldError
from peer.limits import (
    ASK_TOKENS_MAX,
    BODY_BYTES_MAX,
    BODY_S_MAX,
    MESSAGES_MAX,
    STOP_CHARACTERS_MAX,
    STOPS_MAX,
    TEXT_PARTS_MAX,
)

_T = TypeVar("_T")
MAX_AMOUNT: Final = 2**63 - 1
DEFAULTS: Final = AskOptions(model="")
POLICIES: Final = ("balanced", "fastest", "cheapest")
SHARED_NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    "n": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
}
CHAT_NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    **SHARED_NEUTRAL,
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (False, True),
    "modalities": (["text"],),
    "store": (False,),
    "service_tier": ("auto", "default"),
}
COMPLETION_NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    **SHARED_NEUTRAL,
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
}
"""Fields of the OpenAI API that are not supported, with the values that ask for nothing."""
UNHEEDED: Final = ("user", "metadata", "safety_identifier", "prompt_cache_key")
"""Labels for the operator of a central service: taken, never kept or sent anywhere."""


async def read_json(request: Request) -> dict[str, object]:
    """The body as a JSON object. Raises `BodyError`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise BodyError(415, "unsupported_media_type", "send JSON with content-type application/json")
    data = bytearray()
    with trio.move_on_after(BODY_S_MAX) as patience:
        has_more = True
        while has_more:
            piece = await request.receive()
            if piece["type"] != "http.request":
                raise BodyError(400, "body_incomplete", "the body did not arrive as a whole")
            data += piece.get("body", b"")
            has_more = piece.get("more_body", False)
            if len(data) > BODY_BYTES_MAX:
                message = f"the body exceeds {BODY_BYTES_MAX} bytes; shorten it"
                raise BodyError(413, "body_too_large", message)
    if patience.cancelled_caught:
        raise BodyError(408, "body_too_slow", f"the body did not arrive within {BODY_S_MAX} seconds")
    return parse_object(bytes(data))


def parse_object(data: bytes) -> dict[str, object]:
    """A strict JSON object: UTF-8, no key twice, no NaN, of sane depth. Raises `BodyError`."""
    try:
        found = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, _JsonError | json.JSONDecodeError) else "not readable"
        raise BodyError(400, "invalid_json", f"the body is not JSON: {reason}") from error
    if not isinstance(found, dict):
        raise BodyError(400, "invalid_json", "the body must be a JSON object")
    return cast("dict[str, object]", found)


@final
class Fields:
    """The fields of one object, taken one by one; what is left over at the end is refused by name."""

    def __init__(self, values: Mapping[str, object], prefix: str = "") -> None:
        self._left = {name: value for name, value in values.items() if value is not None}
        self._prefix = prefix

    def take(self, name: str, parse: Callable[[object], _T], default: _T) -> _T:
        """The parsed value, or `default` where it is absent or null."""
        if name not in self._left:
            return default
        try:
            return parse(self._left.pop(name))
        except ValueError as error:
            raise FieldError(self._prefix + name, str(error)) from error

    def need(self, name: str, parse: Callable[[object], _T]) -> _T:
        """The parsed value; absent is an error."""
        if name not in self._left:
            raise FieldError(self._prefix + name, "is missing", code="missing_field")
        return self.take(name, parse, cast("_T", None))

    def __contains__(self, name: object) -> bool:
        return name in self._left

    def drop(self, names: Iterable[str]) -> None:
        """Takes fields that change nothing."""
        for name in names:
            self._left.pop(name, None)

    def drop_neutral(self, neutral: Mapping[str, tuple[object, ...]]) -> None:
        """Takes unsupported fields whose value asks for nothing; others stay and are refused by `end`."""
        for name, values in neutral.items():
            value = self._left.get(name)
            if any(_is_same(value, allowed) for allowed in values):
                self._left.pop(name)

    def end(self) -> None:
        """Raises `FieldError` naming a field that nobody took."""
        for name in self._left:
            raise FieldError(
                self._prefix + name[:64], "is not supported; leave it out", code="unsupported_field"
            )


def chat_options(fields: Fields) -> AskOptions:
    """Takes the fields of a chat completion that shape the answer. `stream` is the caller's."""
    messages = fields.need("messages", _messages)
    fields.drop_neutral(CHAT_NEUTRAL)
    newer = fields.take("max_completion_tokens", integer(1, ASK_TOKENS_MAX), None)
    return _options(fields, messages=messages, prompt=None, max_tokens=newer)


def completion_options(fields: Fields) -> AskOptions:
    """Takes the fields of a text completion that shape the answer."""
    prompt = fields.need("prompt", _prompt)
    fields.drop_neutral(COMPLETION_NEUTRAL)
    return _options(fields, messages=(), prompt=prompt, max_tokens=None)


def publish_request(fields: Fields) -> PublishRequest:
    """Takes the fields of a model to publish. Paths are on the daemon's own disk."""
    path = text(4096)
    return PublishRequest(
        name=fields.need("name", text(64, minimum=1)),
        version=fields.take("version", integer(0, MAX_AMOUNT), 1),
        adapter=fields.take("adapter", path, None),
        base=fields.take("base", path, None),
        datanet=fields.take("datanet", path, None),
        split=fields.need("split", _split),
        successor_of=fields.take("successor_of", text(128, minimum=1), None),
        licence=fields.take("licence", text(256), ""),
        about=fields.take("about", text(16_384), ""),
    )


def stream_options(fields: Fields) -> tuple[bool, bool]:
    """Whether to stream, and whether the usage comes in a chunk of its own."""
    is_stream = fields.take("stream", flag, False)
    inner = Fields(fields.take("stream_options", mapping, {}), "stream_options.")
    has_usage = inner.take("include_usage", flag, False)
    inner.drop(("include_obfuscation",))
    inner.end()
    return is_stream, has_usage


def flag(value: object) -> bool:
    if type(value) is not bool:
        raise ValueError("must be true or false")
    return value


def integer(minimum: int, maximum: int) -> Callable[[object], int]:
    """An integer within bounds; true is not 1 and 1.0 is not 1."""

    def parse(value: object) -> int:
        if type(value) is not int or not minimum <= value <= maximum:
            raise ValueError(f"must be an integer from {minimum} to {maximum}")
        return value

    return parse


def text(maximum: int, *, minimum: int = 0) -> Callable[[object], str]:
    """Text of bounded length that is valid Unicode."""

    def parse(value: object) -> str:
        if type(value) is not str or not minimum <= len(value) <= maximum:
            raise ValueError(f"must be text of {minimum} to {maximum} characters")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError("must be valid Unicode: it holds half of a surrogate pair") from error
        return value

    return parse


def choice(*allowed: str) -> Callable[[object], str]:
    """One of some words."""

    def parse(value: object) -> str:
        if type(value) is not str or value not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return value

    return parse


def mapping(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ValueError("must be an object")
    return cast("dict[str, object]", value)


def _options(
    fields: Fields, *, messages: tuple[Message, ...], prompt: str | None, max_tokens: int | None
) -> AskOptions:
    older = fields.take("max_tokens", integer(1, ASK_TOKENS_MAX), None)
    fields.drop(UNHEEDED)
    own = Fields(fields.take("upkeep", mapping, {}), "upkeep.")
    options = AskOptions(
        model=fields.need("model", text(256, minimum=1)),
        messages=messages,
        prompt=prompt,
        max_tokens=max_tokens or older or DEFAULTS.max_tokens,
        temperature_milli=fields.take("temperature", _milli(0, 2000), 0),
        top_p_milli=fields.take("top_p", _milli(1, 1000), 1000),
        seed=fields.take("seed", integer(0, MAX_AMOUNT), None),
        stop=fields.take("stop", _stops, ()),
        max_fee=own.take("max_fee", integer(0, MAX_AMOUNT), None),
        worker=own.take("worker", text(64, minimum=1), None),
        policy=own.take("policy", choice(*POLICIES), "balanced"),
    )
    own.end()
    return options


def _milli(minimum: int, maximum: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        number = value if type(value) in (int, float) else -1
        found = cast("float", number) * 1000
        if not minimum - 0.5 <= found <= maximum + 0.5:
            raise ValueError(f"must be a number from {minimum / 1000:g} to {maximum / 1000:g}")
        return min(max(round(found), minimum), maximum)

    return parse


def _messages(value: object) -> tuple[Message, ...]:
    items = _list(value, MESSAGES_MAX)
    if not items:
        raise ValueError("must hold at least one message")
    return tuple(_message(number, item) for number, item in enumerate(items))


def _message(number: int, value: object) -> Message:
    prefix = f"messages[{number}]."
    fields = Fields(mapping(value), prefix)
    role = fields.need("role", choice("system", "developer", "user", "assistant"))
    content = fields.need("content", _content)
    fields.drop_neutral({"tool_calls": ([],), "refusal": ("",), "annotations": ([],)})
    fields.end()
    return Message(role="system" if role == "developer" else role, content=content)


def _content(value: object) -> str:
    whole = text(BODY_BYTES_MAX)
    if not isinstance(value, list):
        return whole(value)
    parts: list[str] = []
    for item in _list(cast("object", value), TEXT_PARTS_MAX):
        part = mapping(item)
        if part.get("type") != "text" or set(part) != {"type", "text"}:
            raise ValueError("only parts of type text are supported")
        parts.append(whole(part["text"]))
    return "".join(parts)


def _prompt(value: object) -> str:
    if isinstance(value, list) and len(cast("list[object]", value)) == 1:
        value = cast("list[object]", value)[0]
    if not isinstance(value, str):
        raise ValueError("must be one text; lists of prompts and token ids are not supported")
    return text(BODY_BYTES_MAX, minimum=1)(value)


def _stops(value: object) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else _list(value, STOPS_MAX)
    return tuple(text(STOP_CHARACTERS_MAX, minimum=1)(item) for item in items)


def _split(value: object) -> tuple[int, int, int, int, int]:
    parts = [integer(0, 10_000)(item) for item in _list(value, 5)]
    if len(parts) != 5 or sum(parts) != 10_000:
        raise ValueError(
            "must be five integers (worker, creator, data, upkeep, network) that add up to 10000"
        )
    return (parts[0], parts[1], parts[2], parts[3], parts[4])


def _list(value: object, maximum: int) -> list[object]:
    if not isinstance(value, list) or len(cast("list[object]", value)) > maximum:
        raise ValueError(f"must be a list of at most {maximum} items")
    return cast("list[object]", value)


def _is_same(value: object, allowed: object) -> bool:
    """Equality that tells true from 1; 0 and 0.0 are the same."""
    return value == allowed and isinstance(value, bool) == isinstance(allowed, bool)


class _JsonError(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _JsonError("a key stands twice in one object")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise _JsonError(f"{name} is no JSON number")
