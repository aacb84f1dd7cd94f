"""Asking the demo's questions: streamed answers, one worker killed on the way, finality timed."""

from __future__ import annotations

from typing import Any, Final, final

import trio
from rich.console import Console

from gossip_ledger.errors import LocalError
from peer.demo import plan, report
from peer.demo.daemons import Daemon
from peer.demo.plan import Question
from peer.demo.stage import Stage

KILL_AFTER_CHARS: Final = 60
"""The worker dies once this much of the answer was shown: after its first bills, before its end."""
FINAL_S_MAX: Final = 60
POLL_S: Final = 0.05


@final
class Asked:
    """A question and what became of it."""

    def __init__(self, question: Question, answer: dict[str, Any], killed: str | None) -> None:
        self.question = question
        self.answer = answer
        self.killed = killed
        """The name of the peer that was killed."""
        self.final_s: list[float] = []
        """Seconds from the answer's end (or a later receipt's first sight) until each receipt was final."""

    async def watch(self, reader: Daemon) -> None:
        """Times the finality of this answer's receipts, as the reader sees it."""
        ended_s = trio.current_time()
        seen_s: dict[str, float] = {ident: ended_s for ident in self.answer["receipt"]}
        done: set[str] = set()
        with trio.move_on_after(FINAL_S_MAX):
            while len(done) < len(self.answer["workers"]):
                answer = await reader.get(f"/api/answers/{self.answer['id']}")
                for ident in answer["receipt"]:
                    seen_s.setdefault(ident, trio.current_time())
                    if ident not in done and await _is_final(reader, ident):
                        done.add(ident)
                        self.final_s.append(trio.current_time() - seen_s[ident])
                await trio.sleep(POLL_S)

    async def all_final(self, reader: Daemon) -> bool:
        """Whether the reader holds every receipt of this answer as final."""
        return all([await _is_final(reader, ident) for ident in self.answer["receipt"]])

    def document(self) -> dict[str, Any]:
        """The answer as the demo's JSON gives it."""
        answer = self.answer
        return {
            "model": answer["model"],
            "question": self.question.text,
            "text": answer["text"],
            "finish": answer["finish"],
            "tokens_in": answer["tokens_in"],
            "tokens_out": answer["tokens_out"],
            "fee": answer["fee"],
            "receipt": answer["receipt"],
            "worker": answer["worker"],
            "workers": answer["workers"],
            "quantization": answer["quantization"],
            "ttft_ms": answer["ttft_ms"],
            "failovers": answer["failovers"],
            "killed": self.killed,
            "shares": [
                {key: share[key] for key in ("account", "name", "role", "amount")}
                for share in answer["shares"]
            ],
        }


async def ask_all(stage: Stage, console: Console, names: dict[str, str]) -> list[Asked]:
    """Asks every question in turn; finality is timed beside the next one."""
    asked: list[Asked] = []
    async with trio.open_nursery() as nursery:
        for question in plan.QUESTIONS:
            item = await _ask(stage, question, console, names)
            asked.append(item)
            nursery.start_soon(item.watch, stage[plan.READER])
            if item.killed is not None:
                report.restarting(console, item.killed)
                stage[item.killed].start()
                await stage[item.killed].ready()
    return asked


async def _ask(stage: Stage, question: Question, console: Console, names: dict[str, str]) -> Asked:
    report.question(console, question)
    peers = stage.names()
    body: dict[str, object] = {
        "model": question.model,
        "messages": [{"role": "user", "content": question.text}],
        "max_tokens": question.max_tokens,
        "temperature": question.temperature,
        "seed": question.seed,
        "stream": True,
    }
    shown, killed, worker, answer = 0, None, "", None
    async with stage[plan.READER].stream("/v1/chat/completions", body) as events:
        async for event in events:
            if "error" in event:
                raise LocalError(f"the question failed: {event['error']['message']}")
            note: dict[str, Any] = event.get("upkeep_event") or {}
            routed: dict[str, str] = note.get("routed", {})
            worker = routed.get("worker", worker)
            if "failed_over" in note:
                report.failed_over(console, note["failed_over"], peers)
            for choice in event.get("choices", ()):
                piece: dict[str, Any] = choice.get("delta") or {}
                delta = str(piece.get("content") or "")
                shown += len(delta)
                report.delta(console, delta)
            if question.kills_worker and killed is None and shown >= KILL_AFTER_CHARS:
                killed = peers[worker]
                stage[killed].kill()
                report.killed(console, killed)
            answer = event.get("upkeep", answer)
    if answer is None:
        raise LocalError("the answer ended without its bill")
    report.answered(console, answer, names)
    return Asked(question, answer, killed)


async def _is_final(reader: Daemon, receipt: str) -> bool:
    found = await reader.get("/api/ledger/explain", subject=receipt)
    return bool(found["standing"] == "final")
