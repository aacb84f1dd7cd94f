"""What the text of the repository may not say: where it was made, what is left undone, links to nowhere."""

from __future__ import annotations

import re
from pathlib import Path

from tests.tidy.tree import PACKAGES, ROOT, expect_none, modules, name_of, texts

HERE = "tests/tidy/test_text.py"
URL = re.compile(r"https?://([A-Za-z0-9\-]+(?:\.[A-Za-z0-9\-]+)+)")
MACHINE_PATH = re.compile(r"(?<![\w.~/-])/(work|root|opt|Users)/[\w.]")
OPEN_END = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b(?!\([^)]{8,}\))")
TICKET = re.compile(r"\b(issue|pull request|ticket|PR) #?\d+\b", re.IGNORECASE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")

HOSTS = {
    "www.apache.org": "the licence",
    "keepachangelog.com": "the changelog's format",
    "127.0.0.1": "this machine",
    "localhost": "this machine",
    "www.w3.org": "names of XML namespaces",
}
"""Hosts that text may name, and why. Package indexes come from the reader's own configuration."""
RESERVED = (".example", ".example.com", ".example.org", ".test", ".invalid")

ARCHITECTURE_LINES_MAX = 300
ADR_HEADINGS = ("## Status", "## Context", "## Decision", "## Consequences", "### Negative")


def _lines(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{name_of(path)}:{number}: {found[0]}"
        for path, text in texts().items()
        if name_of(path) not in {HERE, "LICENSE"}
        for number, line in enumerate(text.splitlines(), 1)
        for found in pattern.finditer(line)
    ]


def test_no_path_of_one_machine() -> None:
    expect_none(_lines(MACHINE_PATH))


def test_no_open_ends_without_a_reason() -> None:
    expect_none(_lines(OPEN_END))


def test_no_ticket_numbers() -> None:
    """A reader of the code cannot follow them; say the reason instead."""
    expect_none(_lines(TICKET))


def test_only_known_hosts_are_named() -> None:
    strange = []
    for path, text in texts().items():
        if name_of(path) == HERE:
            continue
        for host in URL.findall(text):
            if host not in HOSTS and not f".{host}".endswith(RESERVED):
                strange.append(f"{name_of(path)}: {host}")
    expect_none(strange)


def _pages() -> dict[Path, str]:
    return {path: text for path, text in texts().items() if path.suffix == ".md"}


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for path, text in _pages().items():
        for target in LINK.findall(text):
            name = target.split("#", 1)[0]
            if name and "://" not in name and not (path.parent / name).exists():
                broken.append(f"{name_of(path)}: {target}")
    expect_none(broken)


def test_pages_name_only_files_that_exist() -> None:
    """A path in backquotes, such as `p2p/transport.py`, is a promise."""
    promise = re.compile(r"`((?:" + "|".join((*PACKAGES, "scripts", "tests", "docs")) + r")/[\w./-]+)`")
    missing = [
        f"{name_of(path)}: {name}"
        for path, text in _pages().items()
        for name in promise.findall(text)
        if not (ROOT / name).exists()
    ]
    expect_none(missing)


def test_the_architecture_names_every_module_and_stays_short() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert page.count("\n") < ARCHITECTURE_LINES_MAX
    paths = [path for path, _ in modules(*PACKAGES) if path.name not in ("__init__.py", "limits.py")]
    expect_none(
        name_of(path)
        for path in paths
        if f"`{name_of(path)}`" not in page and f"`{name_of(path.parent)}/`" not in page
    )


def test_decisions_are_complete_and_listed() -> None:
    folder = ROOT / "docs" / "adr"
    index = (folder / "README.md").read_text(encoding="utf-8")
    decisions = sorted(folder.glob("[0-9]*.md"))
    assert decisions
    for number, path in enumerate(decisions, 1):
        text = path.read_text(encoding="utf-8")
        assert path.name.startswith(f"{number:04}-"), path.name
        expect_none(f"{name_of(path)}: lacks {heading}" for heading in ADR_HEADINGS if heading not in text)
        assert f"({path.name})" in index, path.name


def test_every_page_of_a_protocol_is_listed() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = sorted((ROOT / "docs" / "protocol").glob("*.md"))
    assert pages
    expect_none(name_of(path) for path in pages if f"(protocol/{path.name})" not in index)
