"""`upkeep models`, `upkeep adapter publish|show` and `upkeep datanet show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gossip_ledger.errors import LocalError
from peer.cli.shell import (
    HomeOption,
    JsonOption,
    connect,
    console,
    print_fields,
    print_json,
    print_table,
    short,
)
from peer.cli.usage import UsageError

DEFAULT_SPLIT = "60,10,20,5,5"
PARTS = ("worker", "creator", "data", "upkeep", "network")


def models(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """The models that this node knows of, and how many workers hold them now."""
    with connect(home) as client:
        found = client.get("/api/models")
    if as_json:
        print_json(found)
        return
    rows = [
        (
            model["name"],
            model.get("version"),
            model["kind"],
            short(model["id"]),
            short(model["creator"]),
            len(model.get("holders") or ()),
            len(model.get("clusters") or ()),
            model["standing"],
        )
        for model in found["models"]
    ]
    columns = ("name", "version", "kind", "id", "creator", "workers", "contributors", "standing")
    print_table("models", columns, rows, empty="no model is known here yet")


def publish(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of the adapter; leave it out to publish the bare base.")
    ] = None,
    name: Annotated[str, typer.Option(help="What the model is called.")] = "",
    version: Annotated[int, typer.Option(min=0, help="Its version.")] = 1,
    datanet: Annotated[Path | None, typer.Option(help="Folder of the data that it was trained on.")] = None,
    base: Annotated[str, typer.Option(help="Folder of the base. [default: the default base]")] = "",
    split: Annotated[
        str, typer.Option(help="Percent to worker, creator, data, upkeep and network.")
    ] = DEFAULT_SPLIT,
    successor_of: Annotated[str, typer.Option(help="The model that this one follows.")] = "",
    licence: Annotated[str, typer.Option(help="Licence of the weights.")] = "",
    about: Annotated[str, typer.Option(help="What people should know about it.")] = "",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Publish a model from this node's account: how a fee is divided is fixed for good."""
    wanted = name or (folder.expanduser().absolute().name if folder is not None else "")
    if not wanted:
        raise UsageError("--name: the model needs a name")
    parts = _parse_split(split)
    if parts[2] and datanet is None:
        raise UsageError(
            "--datanet: a split with a data part needs the data; or give data 0 percent in --split"
        )
    with connect(home) as client:
        body = {
            "name": wanted,
            "version": version,
            "adapter": _folder(folder),
            "base": _base_folder(base),
            "datanet": _folder(datanet),
            "split": parts,
            "successor_of": successor_of or None,
            "licence": licence,
            "about": about,
        }
        found = client.post("/api/publish", body)
    if as_json:
        print_json(found)
        return
    print_fields(found)


def show(
    model: Annotated[str, typer.Argument(help="Name or id of a model.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """A model's terms: split, contributors, licence, who serves it."""
    with connect(home) as client:
        known: list[dict[str, Any]] = client.get("/api/models")["models"]
    matches = [
        one for one in known if model == one["name"] or (len(model) >= 6 and one["id"].startswith(model))
    ]
    if not matches:
        raise LocalError(f"no model is called {model[:80]}; `upkeep models` lists those known here")
    found = matches[-1]
    if as_json:
        print_json(found)
        return
    plain = ("name", "version", "kind", "id", "creator", "base", "standing", "licence", "about")
    parts: dict[str, int] = found.get("split") or {}
    split = ", ".join(f"{role} {part / 100:g} %" for role, part in parts.items())
    print_fields({**{key: found.get(key) for key in plain}, "split": split})
    clusters: list[dict[str, Any]] = found.get("clusters") or []
    total = sum(cluster["prior"] for cluster in clusters) or 1
    rows = [(one["label"], short(one["owner"]), f"{100 * one['prior'] / total:.1f} %") for one in clusters]
    empty = "no contributors: this model has no data part"
    print_table("contributors", ("label", "account", "prior"), rows, empty=empty)


def show_datanet(
    folder: Annotated[Path, typer.Argument(help="Folder with datanet.json.")],
    as_json: JsonOption = False,
) -> None:
    """What a datanet holds, and that every shard is what it says."""
    from peer.datanets import load_datanet

    datanet = load_datanet(folder.expanduser()).datanet
    if as_json:
        shards = [
            {
                "label": shard.label,
                "contributor": shard.contributor.hex(),
                "documents": shard.documents,
                "size": shard.size,
                "sha256": shard.sha256.hex(),
                "source": shard.source,
                "author": shard.author,
                "licence": shard.licence,
            }
            for shard in datanet.shards
        ]
        plain = {"name": datanet.name, "owner": datanet.owner.hex(), "licence": datanet.licence}
        print_json({**plain, "about": datanet.about, "shards": shards})
        return
    print_fields({"datanet": datanet.name, "owner": datanet.owner.hex(), "licence": datanet.licence})
    console().print(datanet.about, markup=False)
    rows = [
        (
            shard.label,
            short(shard.contributor.hex()),
            shard.documents,
            shard.size,
            shard.licence,
            shard.source,
        )
        for shard in datanet.shards
    ]
    columns = ("contributor", "account", "documents", "bytes", "licence", "source")
    print_table("shards", columns, rows, empty="no shards")


def _parse_split(text: str) -> list[int]:
    problem = f"--split: {text[:40]!r} is not five percentages that add up to 100, such as {DEFAULT_SPLIT}"
    parts: list[int] = []
    for item in text.split(","):
        whole, _, rest = item.strip().partition(".")
        if not (whole.isascii() and whole.isdigit() and len(whole) <= 3 and len(rest) <= 2):
            raise UsageError(problem)
        if rest and not (rest.isascii() and rest.isdigit()):
            raise UsageError(problem)
        parts.append(int(whole) * 100 + int(rest.ljust(2, "0") if rest else 0))
    if len(parts) != len(PARTS) or sum(parts) != 10_000:
        raise UsageError(problem)
    return parts


def _folder(path: Path | None) -> str | None:
    if path is None:
        return None
    full = path.expanduser().absolute()
    if not full.is_dir():
        raise LocalError(f"{full} is not a folder; name the right one")
    return str(full)


def _base_folder(name: str) -> str:
    from peer.cli.bases import prepare_base

    return str(prepare_base(name))
