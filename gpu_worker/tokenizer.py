"""Text to token ids and back, and conversations to prompts. Free of torch: every peer counts tokens itself.

A `Tokenizer` is made of the light files of a base, which may come from another peer, so they are bounded
and the chat template runs in a sandbox. Ids that mark the turns of a conversation are only ever produced by
the template, never by what a person typed into it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast, final

import tokenizers

from gossip_ledger.errors import RemoteError
from gpu_worker.identity import LIGHT_FILES, light_files
from gpu_worker.limits import CHAT_CHARACTERS_MAX, CHAT_MESSAGES_MAX, STOP_IDS_MAX
from gpu_worker.template import ChatTemplate

ROLES: Final = frozenset({"system", "user", "assistant"})
_UNFINISHED: Final = "\N{REPLACEMENT CHARACTER}"
_UNFINISHED_TOKENS_MAX: Final = 3
"""Most tokens that may hold the beginning of a character of four bytes."""
_MARK: Final = "\ue0f0"
"""Private-use character that stands around the number of a message while the template runs."""


class TokenizerError(RemoteError):
    """Tokenizer files that cannot be used, or a conversation that is not acceptable."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str


@final
class Tokenizer:
    """The tokenizer and chat template of one base."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        """From the light files of a base, by name. Raises `TokenizerError` or `TemplateError`."""
        for name, bytes_max in LIGHT_FILES.items():
            if name not in files or len(files[name]) > bytes_max:
                raise TokenizerError(f"{name} is missing or larger than {bytes_max} bytes")
        config = _settings(files["config.json"])
        self._tokenizer = _load(files["tokenizer.json"])
        self._plain = _load(files["tokenizer.json"])
        self._plain.encode_special_tokens = True
        self.stop_ids = _stop_ids(config)
        """Ids that end an answer; never shown."""
        rows, known = config.get("vocab_size"), self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.vocabulary_size: int = max(rows, known) if type(rows) is int else known
        """Ids that the model has, from 0 up to this; not all of them need have a text."""
        added = self._tokenizer.get_added_tokens_decoder().values()
        self._special = tuple(str(token.content) for token in added if token.special)
        self._bos = self._name_of(config.get("bos_token_id"))
        self._eos = self._name_of(self.stop_ids[0] if self.stop_ids else None)
        self._template = ChatTemplate(files["chat_template.jinja"].decode("utf-8", "replace"))

    @staticmethod
    def from_folder(folder: Path) -> Tokenizer:
        """From the folder of a base. Raises `LocalError`, `TokenizerError` or `TemplateError`."""
        return Tokenizer(light_files(folder))

    def encode(self, text: str, *, with_special: bool = False) -> tuple[int, ...]:
        """The ids of `text`. Names of special tokens in it are plain text, unless `with_special`."""
        chosen = self._tokenizer if with_special else self._plain
        try:
            return tuple(chosen.encode(text, add_special_tokens=False).ids)
        except TypeError as error:
            raise TokenizerError("text that is not valid Unicode cannot be encoded") from error

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without special tokens; what is no whole character is shown as U+FFFD."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def decoder(self) -> IncrementalDecoder:
        """A decoder for one answer that arrives in pieces."""
        return IncrementalDecoder(self)

    def render_chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The prompt of a conversation, up to where the answer begins. Raises `TokenizerError`,
        `TemplateError`."""
        if not 1 <= len(messages) <= CHAT_MESSAGES_MAX:
            raise TokenizerError(f"a conversation has 1 to {CHAT_MESSAGES_MAX} messages")
        if sum(len(message.content) for message in messages) > CHAT_CHARACTERS_MAX:
            raise TokenizerError(f"a conversation has at most {CHAT_CHARACTERS_MAX} characters")
        if any(message.role not in ROLES for message in messages):
            raise TokenizerError(f"a message's role is one of {', '.join(sorted(ROLES))}")
        if not self._forges_turns(messages):
            return self.encode(self._render(messages, [m.content for m in messages]), with_special=True)
        marked = self._render(messages, [f"{_MARK}{n}{_MARK}" for n in range(len(messages))])
        ids: list[int] = []
        for n, part in enumerate(marked.split(_MARK)):
            is_content = n % 2 == 1
            text = messages[int(part)].content if is_content else part
            ids.extend(self.encode(text, with_special=not is_content))
        return tuple(ids)

    def _render(self, messages: Sequence[Message], contents: Sequence[str]) -> str:
        turns = [{"role": m.role, "content": c} for m, c in zip(messages, contents, strict=True)]
        return self._template.render(turns, bos=self._bos, eos=self._eos)

    def _forges_turns(self, messages: Sequence[Message]) -> bool:
        """Whether anybody typed the name of a special token, or a character we use as a mark."""
        return any(name in m.content for m in messages for name in (*self._special, _MARK))

    def _name_of(self, token: object) -> str:
        return (self._tokenizer.id_to_token(token) or "") if type(token) is int and 0 <= token < 2**31 else ""


@final
class IncrementalDecoder:
    """Text of an answer as its tokens arrive. A character whose bytes are not all there yet is held back."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        """The last tokens already shown, then those that are not."""
        self._shown = 0
        """How many of `_ids` are shown."""

    def feed(self, ids: Sequence[int]) -> str:
        """The text that `ids` complete; may be empty.

        Only the last tokens may be the beginning of a character; broken bytes before them are shown as such.
        """
        self._ids.extend(ids)
        before = self._tokenizer.decode(self._ids[: self._shown])
        pending = len(self._ids) - self._shown
        end = len(self._ids)
        text = self._tokenizer.decode(self._ids)
        for held in range(1, min(_UNFINISHED_TOKENS_MAX, pending) + 1):
            if not text.endswith(_UNFINISHED):
                break
            end = len(self._ids) - held
            text = self._tokenizer.decode(self._ids[:end])
        if end > self._shown:
            self._ids = self._ids[self._shown :]
            self._shown = end - self._shown
        return text[len(before) :]

    def finish(self) -> str:
        """What was held back, at the end of the answer."""
        before = self._tokenizer.decode(self._ids[: self._shown])
        text = self._tokenizer.decode(self._ids)
        self._shown = len(self._ids)
        return text[len(before) :]


def _load(data: bytes) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(data.decode("utf-8"))
    except Exception as error:
        raise TokenizerError(f"tokenizer.json cannot be read: {str(error)[:200]}") from error


def _settings(data: bytes) -> dict[str, Any]:
    try:
        value: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"config.json cannot be read: {str(error)[:200]}") from error
    if type(value) is not dict:
        raise TokenizerError("config.json is not a JSON object")
    return cast("dict[str, Any]", value)


def _stop_ids(config: dict[str, Any]) -> tuple[int, ...]:
    value: Any = config.get("eos_token_id")
    ids = cast("list[Any]", value if isinstance(value, list) else [value])
    found = tuple(sorted({n for n in ids if type(n) is int and 0 <= n < 2**31}))
    if len(found) > STOP_IDS_MAX:
        raise TokenizerError(f"more than {STOP_IDS_MAX} ids end an answer")
    return found
