"""`upkeep ask` and `upkeep quote`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gossip_ledger.errors import LocalError
from peer.cli.shell import (
    HomeOption,
    JsonOption,
    connect,
    money,
    notes,
    parse_money,
    print_fields,
    print_json,
    printable,
    read_text,
    short,
)
from peer.cli.usage import UsageError

if TYPE_CHECKING:
    from peer.client import DaemonClient
TextArgument = Annotated[list[str], typer.Argument(help="The question; - reads it from standard input.")]
ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Name or id. [default: the base]", show_default=False)
]
TokensOption = Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer, in tokens.")]
FeeOption = Annotated[
    str, typer.Option("--max-fee", help="Most that it may cost. [default: the quote]", show_default=False)
]
WorkerOption = Annotated[
    str, typer.Option("--worker", help="Account of the worker to ask, or its beginning.")
]
PolicyOption = Annotated[str, typer.Option("--policy", help="balanced, fastest or cheapest.")]
SystemOption = Annotated[str, typer.Option("--system", help="Instructions that precede the question.")]
RawOption = Annotated[bool, typer.Option("--raw", help="Continue the text; no chat template.")]


def ask(
    text: TextArgument,
    model: ModelOption = "",
    max_tokens: TokensOption = 128,
    max_fee: FeeOption = "",
    worker: WorkerOption = "",
    policy: PolicyOption = "balanced",
    system: SystemOption = "",
    raw: RawOption = False,
    temperature: Annotated[float, typer.Option(help="0 gives the likeliest answer.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Only the likeliest words that make up this part.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a model. The answer streams to stdout; what it cost and who earned it goes to stderr."""
    body = _body(text, max_tokens, max_fee, worker, policy, system, raw)
    body |= {"temperature": temperature, "top_p": top_p, "seed": seed, "stream": True}
    with connect(home) as client:
        body["model"] = model or _default_model(client)
        path = "/v1/completions" if raw else "/v1/chat/completions"
        with closing(client.stream(path, body)) as chunks:
            answer = _show(chunks, is_quiet=as_json)
        if as_json:
            print_json(answer)
            return
        _show_cost(answer, str(client.get("/api/status").get("unit", "")))


def quote(
    text: TextArgument,
    model: ModelOption = "",
    max_tokens: TokensOption = 128,
    max_fee: FeeOption = "",
    worker: WorkerOption = "",
    policy: PolicyOption = "balanced",
    system: SystemOption = "",
    raw: RawOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a question would cost at most, from the worker that would answer it. Costs nothing."""
    body = _body(text, max_tokens, max_fee, worker, policy, system, raw)
    with connect(home) as client:
        body["model"] = model or _default_model(client)
        found = client.post("/api/quote", body)
        if as_json:
            print_json(found)
            return
        unit = str(found.get("unit") or client.get("/api/status").get("unit", ""))
    print_fields(
        {
            "model": found.get("model"),
            "worker": short(found.get("worker")),
            "quantization": found.get("quantization"),
            "price in": f"{money(found['price_in'], unit)} per 1,000 tokens",
            "price out": f"{money(found['price_out'], unit)} per 1,000 tokens",
            "at most": money(found["max_fee"], unit),
        }
    )


def _body(
    words: list[str], max_tokens: int, max_fee: str, worker: str, policy: str, system: str, raw: bool
) -> dict[str, Any]:
    text = read_text(words)
    extra: dict[str, object] = {"policy": policy}
    if max_fee:
        extra["max_fee"] = parse_money(max_fee, "--max-fee")
    if worker:
        extra["worker"] = worker
    body: dict[str, Any] = {"max_tokens": max_tokens, "upkeep": extra}
    if raw:
        if system:
            raise UsageError("--raw continues a text as it is; leave out --system")
        return {"prompt": text, **body}
    turns = [{"role": "system", "content": system}] if system else []
    return {"messages": [*turns, {"role": "user", "content": text}], **body}


def _default_model(client: DaemonClient) -> str:
    """The base that most workers serve, else whatever is served."""
    found: list[dict[str, Any]] = client.get("/api/models")["models"]
    if not found:
        raise LocalError("this node knows of no model yet; wait until it has synced, or publish one")

    def rank(model: dict[str, Any]) -> tuple[int, bool]:
        return (len(model.get("holders") or ()), model.get("kind") == "base")

    bases = [model for model in found if model.get("kind") == "base"]
    return str(max(bases or found, key=rank)["name"])


def _show(chunks: Iterator[dict[str, Any]], *, is_quiet: bool) -> dict[str, Any]:
    """Prints the text as it comes; returns the answer's account."""
    answer: dict[str, Any] | None = None
    has_text = False
    for chunk in chunks:
        lost: dict[str, Any] | None = chunk.get("upkeep_event", {}).get("failed_over")
        if lost is not None:
            why = printable(str(lost["reason"]))
            before = "\n" if has_text and sys.stderr.isatty() else ""
            sys.stderr.write(
                f"{before}upkeep: lost worker {short(lost['worker'])} ({why}); going on elsewhere\n"
            )
        for choice in chunk.get("choices", ()):
            delta = str(choice.get("text") or choice.get("delta", {}).get("content") or "")
            if delta and not is_quiet:
                has_text = True
                sys.stdout.write(printable(delta))
                sys.stdout.flush()
        answer = chunk.get("upkeep", answer)
    if has_text:
        sys.stdout.write("\n")
        sys.stdout.flush()
    if answer is None:
        raise LocalError("the daemon gave no account of this answer; see its log")
    return answer


def _show_cost(answer: dict[str, Any], unit: str) -> None:
    from rich.markup import escape

    out = notes()
    speed = f"{answer['tokens_per_s']:.1f} tokens/s, first after {answer['ttft_ms'] / 1000:.2f} s"
    words = (
        f"{answer['model']} by {short(answer['worker'])} ({answer['quantization']}): "
        f"{answer['tokens_in']} + {answer['tokens_out']} tokens, {speed}, {money(answer['fee'], unit)}"
    )
    out.print(f"\n[dim]{escape(printable(words))}[/]")
    if answer["finish"] == "fee":
        out.print("[yellow]cut off where the fee would have exceeded --max-fee[/]")
    if sys.stderr.isatty():
        _show_split(answer, unit)
    else:
        for part in answer["shares"]:
            line = f"  {part['role']:<8} {money(part['amount'], unit):>20}  {part['name']}"
            out.print(escape(printable(line)))


def _show_split(answer: dict[str, Any], unit: str) -> None:
    """For a terminal: who earned how much of the fee, as bars."""
    from rich.markup import escape

    out = notes()
    for part in answer["shares"]:
        width = round(24 * part["amount"] / answer["fee"]) if answer["fee"] else 0
        bar = "█" * width
        name = escape(printable(str(part["name"])))
        out.print(
            f"  [bold]{part['role']:<8}[/] {money(part['amount'], unit):>20}  [cyan]{bar:<24}[/] {name}"
        )
