"""Chat templates in a sandbox: the part of Jinja that lays out a conversation, and no more. Free of torch.

A template comes with a base, perhaps from another peer. It sees messages and two token names. It has no
macros, imports or attributes beyond a list, its loops nest twice at most, and no string that it builds
outgrows a bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn, final

import jinja2
import jinja2.nodes
import jinja2.sandbox
import jinja2.visitor

from gossip_ledger.errors import RemoteError
from gpu_worker.limits import (
    CHAT_CHARACTERS_MAX,
    TEMPLATE_DEPTH_MAX,
    TEMPLATE_LOOP_MAX,
)

_FILTERS: Final = ("default", "first", "int", "last", "length", "list", "lower", "string", "trim", "upper")
_TESTS: Final = ("defined", "eq", "equalto", "false", "in", "iterable", "mapping", "ne", "none", "number")
_MORE_TESTS: Final = ("odd", "even", "sequence", "string", "true", "undefined")
_METHODS: Final[Mapping[type, frozenset[str]]] = {
    str: frozenset(
        (
            "capitalize",
            "endswith",
            "lower",
            "lstrip",
            "rstrip",
            "split",
            "startswith",
            "strip",
            "title",
            "upper",
        )
    ),
    dict: frozenset(("get", "items", "keys", "values")),
}
_REFUSED: Final = (
    jinja2.nodes.Macro,
    jinja2.nodes.CallBlock,
    jinja2.nodes.Import,
    jinja2.nodes.FromImport,
    jinja2.nodes.Include,
    jinja2.nodes.Extends,
    jinja2.nodes.Block,
)
_RENDER_ERRORS: Final = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


class TemplateError(RemoteError):
    """A chat template that is not acceptable, or a conversation that it refuses."""


@final
class ChatTemplate:
    """One compiled template."""

    def __init__(self, source: str) -> None:
        """Raises `TemplateError` where the template uses more than it may."""
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True)
        try:
            tree = environment.parse(source)
            _check(tree, 0)
            tree = _Spelled().visit(tree)
            self._template = environment.from_string(tree)
        except (jinja2.TemplateError, RecursionError) as error:
            raise TemplateError(f"the chat template is not usable: {error}") from error

    def render(self, messages: Sequence[Mapping[str, str]], *, bos: str, eos: str) -> str:
        """The conversation as text that ends where the assistant's answer begins. Raises `TemplateError`."""
        try:
            pieces: list[str] = []
            size = 0
            for piece in self._template.generate(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                bos_token=bos,
                eos_token=eos,
            ):
                size += len(piece)
                _bound(size)
                pieces.append(piece)
            return "".join(pieces)
        except _RENDER_ERRORS as error:
            raise TemplateError(f"the chat template refused the conversation: {str(error)[:200]}") from error


@final
class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja with a closed list of filters, tests, methods and functions, and bounded strings."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.filters = {name: self.filters[name] for name in _FILTERS}
        self.tests = {name: self.tests[name] for name in (*_TESTS, *_MORE_TESTS)}
        self.globals = {"range": _range, "namespace": self.globals["namespace"], "raise_exception": _refuse}

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if type(obj) in (str, list, tuple, int, dict):
            return attr in _METHODS.get(type(obj), ())
        return super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and type(left) is str and type(right) is str:
            _bound(len(left) + len(right))
        elif operator == "**" or type(left) is not int or type(right) is not int:
            raise TypeError(f"{operator} is not available for these values")
        elif max(abs(left), abs(right)) > CHAT_CHARACTERS_MAX:
            raise ValueError("a number is too large")
        return super().call_binop(context, operator, left, right)


@final
class _Spelled(jinja2.visitor.NodeTransformer):
    """Writes `a ~ b` as `(a | string) + (b | string)`, so that one rule bounds both."""

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Expr:
        parts = [
            jinja2.nodes.Filter(self.visit(part), "string", [], [], None, None, lineno=node.lineno)
            for part in node.nodes
        ]
        total: jinja2.nodes.Expr = parts[0]
        for part in parts[1:]:
            total = jinja2.nodes.Add(total, part, lineno=node.lineno)
        total.set_environment(node.environment) if node.environment else None
        return total


def _check(node: jinja2.nodes.Node, depth: int) -> None:
    if isinstance(node, _REFUSED):
        raise jinja2.TemplateError(f"{type(node).__name__.lower()} is not available")
    if isinstance(node, jinja2.nodes.For):
        depth += 1
        if node.recursive or depth > TEMPLATE_DEPTH_MAX:
            raise jinja2.TemplateError(f"loops nest deeper than {TEMPLATE_DEPTH_MAX}")
    for child in node.iter_child_nodes():
        _check(child, depth)


def _range(*arguments: int) -> range:
    numbers = range(*arguments)
    if len(numbers) > TEMPLATE_LOOP_MAX:
        raise ValueError("a range is too long")
    return numbers


def _refuse(reason: object) -> NoReturn:
    raise jinja2.TemplateError(str(reason))


def _bound(size: int) -> None:
    if size > CHAT_CHARACTERS_MAX:
        raise ValueError(f"more than {CHAT_CHARACTERS_MAX} characters")
