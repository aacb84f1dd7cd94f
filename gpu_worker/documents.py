"""Documents: what a datanet's shards hold and what an adapter is trained on, one JSON object a line.

A document is something that a person might ask (`prompt`) and what its contributor wrote (`text`).
Torch-free, and strict: an unknown field, a wrong type or an oversized line is a `LocalError` that names the
line.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final, cast, final

from gossip_ledger.errors import LocalError

DOCUMENT_BYTES_MAX: Final = 65_536
"""Largest line of a shard, bytes."""
DOCUMENTS_MAX: Final = 65_536
"""Most documents in one file."""

_FIELDS: Final = frozenset(("title", "prompt", "text"))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One prompt and the text that answers it."""

    title: str
    """Where the text stands in its source; for people."""
    prompt: str
    text: str


def encode_documents(documents: tuple[Document, ...]) -> bytes:
    """The bytes of a shard file. Equal documents give equal bytes."""
    lines = (
        json.dumps(
            {"title": document.title, "prompt": document.prompt, "text": document.text},
            ensure_ascii=False,
            separators=(",", ":"),
        )
        for document in documents
    )
    return "".join(f"{line}\n" for line in lines).encode("utf-8")


def decode_documents(data: bytes, where: str) -> tuple[Document, ...]:
    """The documents of a shard file; `where` names the file in errors. Raises `LocalError`."""
    lines = data.split(b"\n")
    if lines[-1] != b"":
        raise LocalError(f"{where}: the last line is cut off; copy the file again")
    if len(lines) - 1 > DOCUMENTS_MAX:
        raise LocalError(f"{where}: more than {DOCUMENTS_MAX} documents; split the file")
    return tuple(_document(line, f"{where}:{number}") for number, line in enumerate(lines[:-1], start=1))


def _document(line: bytes, where: str) -> Document:
    if len(line) > DOCUMENT_BYTES_MAX:
        raise LocalError(f"{where}: longer than {DOCUMENT_BYTES_MAX} bytes; split the document")
    try:
        value: object = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise LocalError(f"{where}: not a JSON object; each line must be one") from error
    if not isinstance(value, dict):
        raise LocalError(f"{where}: not a JSON object; each line must be one")
    fields = cast("dict[str, object]", value)
    texts = {name: field for name, field in fields.items() if isinstance(field, str)}
    if texts.keys() != _FIELDS or fields.keys() != _FIELDS:
        raise LocalError(f"{where}: expected exactly the texts title, prompt and text")
    if not texts["prompt"].strip() or not texts["text"].strip():
        raise LocalError(f"{where}: an empty prompt or text; remove the line")
    return Document(title=texts["title"], prompt=texts["prompt"], text=texts["text"])
