"""Training one LoRA adapter on documents: PEFT on a frozen base, repeatable from its seed.

The loss counts the answer's tokens alone; the prompt is there as the chat template puts it, so the adapter
shows in chat. A training process never serves. Left out: command line and progress format (`train.py`).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, final

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from gossip_ledger.errors import LocalError
from gpu_worker.documents import Document
from gpu_worker.tokenizer import Message, Tokenizer

IGNORED: Final = -100
"""The label of a token that the loss does not count."""
WEIGHTS_NAME: Final = "adapter_model.safetensors"
CONFIG_NAME: Final = "adapter_config.json"
REPORT_NAME: Final = "training.json"
CHECKPOINT_NAME: Final = "checkpoint.pt"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything but the data and the base that decides what comes out."""

    steps: int = 120
    batch: int = 8
    """Documents per step."""
    tokens_max: int = 224
    """A longer document is cut."""
    rank: int = 8
    alpha: int = 16
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    learning_rate: float = 1e-3
    seed: int = 1
    autocast: bool = False
    """Matrix products in bf16: about twice as fast on GPUs and on CPUs with quick bf16, slower on the
    rest.
    """


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A document as tokens."""

    tokens: tuple[int, ...]
    answer_from: int
    """Index of the first token that the loss counts."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Progress: one optimizer step is done."""

    step: int
    steps: int
    loss: float
    """Mean over the answer tokens of the step, nats."""
    tokens: int
    """Tokens of all steps of this run so far, prompts included."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Progress: held-out perplexity of the answer tokens, with the adapter as it is at `step`."""

    step: int
    perplexity: float
    tokens: int


Progress = Callable[[Step | Measured], None]


def tokenize(base: Path, documents: tuple[Document, ...], tokens_max: int) -> tuple[Example, ...]:
    """The documents as a worker would see them: chat template, prompt, answer, end of turn. Raises
    `LocalError`.
    """
    tokenizer = Tokenizer.from_folder(base)
    end = _end_of_turn(tokenizer)
    examples: list[Example] = []
    for document in documents:
        prompt = tokenizer.render_chat([Message(role="user", content=document.prompt)])
        tokens = (*prompt, *tokenizer.encode(document.text), *end)[:tokens_max]
        if len(prompt) < len(tokens):
            examples.append(Example(tokens=tokens, answer_from=len(prompt)))
    return tuple(examples)


def _end_of_turn(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The token that the template puts where a turn ends, if it is one that ends answers."""
    turns = [Message(role=role, content="hello") for role in ("user", "assistant", "user")]
    return tuple(token for token in tokenizer.render_chat(turns) if token in tokenizer.stop_ids)[-1:]


def schedule(count: int, recipe: Recipe) -> Iterator[tuple[int, ...]]:
    """Which examples each step takes: whole shuffled rounds, from the seed alone."""
    queue: list[int] = []
    turn = 0
    for _ in range(recipe.steps):
        while len(queue) < recipe.batch:
            queue += sorted(range(count), key=lambda index: _draw(recipe.seed, turn, index))
            turn += 1
        yield tuple(queue[: recipe.batch])
        del queue[: recipe.batch]


def _draw(seed: int, turn: int, index: int) -> bytes:
    return hashlib.sha256(f"{seed}/{turn}/{index}".encode()).digest()


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up over a tenth, then a cosine down to a tenth of the peak."""
    warm = max(1, recipe.steps // 10)
    if step < warm:
        return recipe.learning_rate * (step + 1) / warm
    done = (step - warm) / max(1, recipe.steps - warm)
    return recipe.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


def build_model(base: Path, recipe: Recipe) -> Any:
    """The base with a fresh adapter, from the seed alone. Raises `LocalError`."""
    torch.manual_seed(recipe.seed)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    except OSError as error:
        raise LocalError(
            f"{base}: not a model folder ({error}); point at one, or fetch the base first"
        ) from error
    lora = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules=list(recipe.targets),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with _peft_warnings():
        adapted: Any = get_peft_model(model, lora)
    return adapted


@contextmanager
def _peft_warnings() -> Iterator[None]:
    """PEFT asks for a property by a name that transformers is about to drop; nothing to act on here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def answer_loss(model: Any, examples: tuple[Example, ...], *, autocast: bool) -> tuple[torch.Tensor, int]:
    """The summed loss over the answer tokens of one batch, nats, and how many these are."""
    width = max(len(example.tokens) for example in examples)
    tokens = torch.zeros(len(examples), width, dtype=torch.long)
    mask = torch.zeros(len(examples), width, dtype=torch.long)
    labels = torch.full((len(examples), width), IGNORED, dtype=torch.long)
    for row, example in enumerate(examples):
        length = len(example.tokens)
        tokens[row, :length] = torch.tensor(example.tokens)
        mask[row, :length] = 1
        labels[row, example.answer_from : length] = tokens[row, example.answer_from : length]
    device = next(model.parameters()).device
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
        decoder = model.get_base_model() if hasattr(model, "get_base_model") else model
        hidden = decoder.model(input_ids=tokens.to(device), attention_mask=mask.to(device)).last_hidden_state
        wanted = labels[:, 1:].reshape(-1).to(device)
        counted = wanted != IGNORED
        logits = decoder.lm_head(hidden[:, :-1].reshape(-1, hidden.shape[-1])[counted])
    loss = torch.nn.functional.cross_entropy(logits.float(), wanted[counted], reduction="sum")
    return loss, int(counted.sum())


def perplexity(model: Any, examples: tuple[Example, ...], recipe: Recipe) -> tuple[float, int]:
    """Perplexity per answer token, and the number of these."""
    model.eval()
    total, count = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(examples), recipe.batch):
            batch = examples[start : start + recipe.batch]
            loss, tokens = answer_loss(model, batch, autocast=recipe.autocast)
            total, count = total + float(loss), count + tokens
    return math.exp(total / max(1, count)), count


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a finished run leaves behind."""

    before: float
    """Held-out perplexity of the base alone."""
    after: float
    loss: float
    """Mean over the last tenth of the steps."""
    tokens: int


def train(
    *,
    base: Path,
    documents: tuple[Document, ...],
    held_out: tuple[Document, ...],
    recipe: Recipe,
    out: Path,
    progress: Progress,
    checkpoint_every: int = 20,
    device: str = "cpu",
) -> Trained:
    """Trains, measures and writes the adapter into `out`, atomically at the end; resumes a run that was cut
    off.

    Raises `LocalError`. `KeyboardInterrupt` passes through after a checkpoint.
    """
    examples = tokenize(base, documents, recipe.tokens_max)
    held = tokenize(base, held_out, recipe.tokens_max)
    if not examples:
        raise LocalError("nothing to train on: no document has an answer that fits; raise the token limit")
    if not held:
        raise LocalError("nothing to measure with: hold out some documents")
    model = build_model(base, recipe).to(device)
    run = _Run(model, recipe, out / CHECKPOINT_NAME, _fingerprint(base, documents, held_out, recipe))
    run.resume()
    with model.disable_adapter():
        before, tokens = perplexity(model, held, recipe)
    progress(Measured(step=0, perplexity=before, tokens=tokens))
    try:
        run.steps(examples, progress, checkpoint_every)
    except KeyboardInterrupt:
        run.save()
        raise
    after, tokens = perplexity(model, held, recipe)
    progress(Measured(step=recipe.steps, perplexity=after, tokens=tokens))
    tail = run.losses[-max(1, recipe.steps // 10) :]
    trained = Trained(before=before, after=after, loss=sum(tail) / len(tail), tokens=run.tokens)
    write_adapter(model, recipe, out, {**asdict(trained), "recipe": asdict(recipe)})
    (out / CHECKPOINT_NAME).unlink(missing_ok=True)
    return trained


class _Run:
    """The state of one training run, and its checkpoint."""

    def __init__(self, model: Any, recipe: Recipe, path: Path, fingerprint: str) -> None:
        self.model = model
        self.recipe = recipe
        self.path = path
        self.fingerprint = fingerprint
        self.losses: list[float] = []
        self.tokens = 0
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=recipe.learning_rate, weight_decay=0.0)

    def steps(self, examples: tuple[Example, ...], progress: Progress, checkpoint_every: int) -> None:
        self.model.train()
        done = len(self.losses)
        for step, chosen in enumerate(schedule(len(examples), self.recipe)):
            if step < done:
                continue
            self._step(step, tuple(examples[index] for index in chosen))
            progress(Step(step=step + 1, steps=self.recipe.steps, loss=self.losses[-1], tokens=self.tokens))
            if (step + 1) % checkpoint_every == 0 and step + 1 < self.recipe.steps:
                self.save()

    def _step(self, step: int, batch: tuple[Example, ...]) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.recipe)
        total, count = answer_loss(self.model, batch, autocast=self.recipe.autocast)
        loss = total / count
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise LocalError(f"the loss diverged at step {step + 1}; lower the learning rate")
        self.losses.append(value)
        self.tokens += sum(len(example.tokens) for example in batch)

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "fingerprint": self.fingerprint,
            "adapter": get_peft_model_state_dict(self.model),
            "optimizer": self.optimizer.state_dict(),
            "losses": self.losses,
            "tokens": self.tokens,
        }
        scratch = self.path.with_suffix(".part")
        torch.save(state, scratch)
        os.replace(scratch, self.path)

    def resume(self) -> None:
        """Goes on from the checkpoint if it is of this very run; another run's is left for the end to
        remove.
        """
        if not self.path.is_file():
            return
        try:
            state: dict[str, Any] = torch.load(self.path, weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise LocalError(f"{self.path}: not a checkpoint; delete it to start again") from error
        if state.get("fingerprint") != self.fingerprint:
            return
        set_peft_model_state_dict(self.model, state["adapter"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.losses, self.tokens = list(state["losses"]), int(state["tokens"])


def _fingerprint(
    base: Path, documents: tuple[Document, ...], held_out: tuple[Document, ...], recipe: Recipe
) -> str:
    """What a checkpoint must agree with: recipe, data and the base's configuration."""
    shape = (base / "config.json").read_bytes()
    return hashlib.sha256(repr((recipe, documents, held_out, shape)).encode()).hexdigest()


def compare(
    base: Path, adapter: Path, held_out: tuple[Document, ...], recipe: Recipe
) -> tuple[float, float, int]:
    """Held-out perplexity of the base, of the adapter as its files are, and the tokens counted.

    Raises `LocalError`.
    """
    held = tokenize(base, held_out, recipe.tokens_max)
    try:
        plain: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
        with _peft_warnings():
            model: Any = PeftModel.from_pretrained(plain, str(adapter))
    except (OSError, ValueError) as error:
        raise LocalError(f"{adapter}: not an adapter for {base.name} ({error}); train it again") from error
    with model.disable_adapter():
        before, tokens = perplexity(model, held, recipe)
    after, _ = perplexity(model, held, recipe)
    return before, after, tokens


def write_adapter(model: Any, recipe: Recipe, out: Path, report: dict[str, Any]) -> None:
    """Weights in bf16, PEFT's configuration without any path of this machine, and the report."""
    out.mkdir(parents=True, exist_ok=True)
    state: dict[str, torch.Tensor] = get_peft_model_state_dict(model)
    weights = {
        name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in sorted(state.items())
    }
    configuration = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": recipe.rank,
        "lora_alpha": recipe.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(recipe.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    _write(out / REPORT_NAME, lambda path: path.write_text(json.dumps(report, indent=1) + "\n", "utf-8"))
    _write(
        out / CONFIG_NAME, lambda path: path.write_text(json.dumps(configuration, indent=1) + "\n", "utf-8")
    )
    _write(out / WEIGHTS_NAME, lambda path: save_file(weights, path, metadata={"format": "pt"}))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    scratch = path.with_name(path.name + ".part")
    write(scratch)
    os.replace(scratch, path)
