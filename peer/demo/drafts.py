"""What a corpus yields before it has an owner: named contributors with their documents and where these come
from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, final

from gossip_ledger.records import AccountId
from gpu_worker.documents import Document
from peer.datanets import Contents, Datanet, make_shard
from peer.demo.passages import draw

HELD_OUT_PER_CONTRIBUTOR: Final = 5
"""Documents of each contributor kept out of the datanet, to measure with; fewer of one who gave little."""
SHARD_BYTES: Final = 64_000
"""Most text of one contributor in a demo datanet, bytes."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """What one contributor brings."""

    contributor: str
    """The real author or submitter."""
    label: str
    source: str
    """Package, version and place, so that anyone finds the same text."""
    licence: str
    documents: tuple[Document, ...]
    held_out: tuple[Document, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """A datanet before it has an owner."""

    name: str
    about: str
    licence: str
    notice: str
    """What the licence asks every copy to carry."""
    contributions: tuple[Contribution, ...]

    @property
    def held_out(self) -> tuple[Document, ...]:
        """All held-out documents."""
        return tuple(document for part in self.contributions for document in part.held_out)


def contribute(
    contributor: str, label: str, source: str, licence: str, documents: Iterable[Document]
) -> Contribution:
    """A repeatable sample of `documents`: first some to hold out, then up to `SHARD_BYTES` to give."""
    unlike = {document.text: document for document in documents}
    shuffled = sorted(unlike.values(), key=lambda document: draw(contributor, document.title))
    kept = min(HELD_OUT_PER_CONTRIBUTOR, len(shuffled) // 4)
    given: list[Document] = []
    size = 0
    for document in shuffled[kept:]:
        size += len(document.text.encode("utf-8"))
        if size > SHARD_BYTES:
            break
        given.append(document)
    return Contribution(
        contributor=contributor,
        label=label,
        source=source,
        licence=licence,
        documents=tuple(given),
        held_out=tuple(shuffled[:kept]),
    )


def to_contents(corpus: Corpus, owner: AccountId, accounts: Mapping[str, AccountId]) -> Contents:
    """The corpus as a datanet of `owner`; `accounts` gives each contributor's account by name."""
    shards = tuple(
        make_shard(
            accounts[part.contributor],
            part.documents,
            label=part.label,
            source=part.source,
            author=part.contributor,
            licence=part.licence,
        )
        for part in corpus.contributions
    )
    return Contents(
        datanet=Datanet(
            owner=owner,
            name=corpus.name,
            licence=corpus.licence,
            notice=corpus.notice,
            about=corpus.about,
            shards=shards,
        ),
        documents=tuple(part.documents for part in corpus.contributions),
        held_out=corpus.held_out,
    )
