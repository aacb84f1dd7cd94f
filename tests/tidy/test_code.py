"""The style guide as tests: sizes, purity and one way in. The linters say the rest (see pyproject.toml)."""

from __future__ import annotations

import ast
import re

from tests.tidy.tree import PACKAGES, PURE, dotted, expect_none, modules, name_of, python_files, texts

MODULE_LINES_MAX = 500
TEST_MODULE_LINES_MAX = 700
"""A list of cases reads from top to bottom; splitting it helps nobody as soon."""
FUNCTION_LINES_MAX = 60

CLOCKS = {
    "time.time",
    "time.time_ns",
    "time.monotonic",
    "time.monotonic_ns",
    "datetime.now",
    "datetime.utcnow",
}
CHANCE = {"os.urandom", "os.getrandom"} | {
    f"random.{name}"
    for name in (
        "random",
        "randint",
        "randrange",
        "choice",
        "choices",
        "sample",
        "shuffle",
        "uniform",
        "seed",
    )
}
CAPABILITY_MODULES = {"peer/capabilities.py"}
"""Where the real clock and the real entropy are made; everything else is handed them."""

ENTRY_POINTS = {"peer/cli/__init__.py"}
"""Packages that are a program: `pyproject.toml` names what starts it."""


def _functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def _length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's body without its docstring: declaring and explaining must not cost anything."""
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    if not body:
        return 0
    assert function.end_lineno is not None
    return function.end_lineno - body[0].lineno + 1


def test_modules_stay_small() -> None:
    lines = {name_of(path): texts()[path].count("\n") for path in python_files()}
    expect_none(
        f"{name}: {count} lines"
        for name, count in lines.items()
        if count > (TEST_MODULE_LINES_MAX if name.startswith("tests/") else MODULE_LINES_MAX)
    )


def test_functions_stay_small() -> None:
    expect_none(
        f"{name_of(path)}: {function.name} has {_length(function)} lines"
        for path, tree in python_files().items()
        for function in _functions(tree)
        if _length(function) > FUNCTION_LINES_MAX
    )


def test_every_module_says_what_it_is() -> None:
    silent = [name_of(path) for path, tree in python_files().items() if not ast.get_docstring(tree)]
    expect_none(silent)


def test_package_files_hold_a_docstring_and_re_export_nothing() -> None:
    busy = [
        name_of(path)
        for path, tree in modules(*PACKAGES)
        if path.name == "__init__.py" and name_of(path) not in ENTRY_POINTS
        if len(tree.body) != 1 or not ast.get_docstring(tree)
    ]
    expect_none(busy)


def test_annotations_are_never_evaluated() -> None:
    future = "from __future__ import annotations"
    expect_none(
        name_of(path)
        for path, _ in modules(*PACKAGES)
        if path.name != "__init__.py" and future not in texts()[path]
    )


def test_clocks_and_chance_are_handed_in() -> None:
    found = [
        f"{name_of(path)}:{node.lineno}: {dotted(node)}"
        for path, tree in modules(*PACKAGES)
        if name_of(path) not in CAPABILITY_MODULES
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and dotted(node).removeprefix("datetime.") in CLOCKS | CHANCE
    ]
    expect_none(found)


def test_clocks_and_chance_are_not_imported_by_name() -> None:
    banned = {name.rsplit(".", 1)[1] for name in CLOCKS | CHANCE}
    found = [
        f"{name_of(path)}:{node.lineno}: from {node.module} import {alias.name}"
        for path, tree in modules(*PACKAGES)
        if name_of(path) not in CAPABILITY_MODULES
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in {"time", "random", "os", "secrets", "uuid"}
        for alias in node.names
        if alias.name in banned or node.module in {"secrets", "uuid"}
    ]
    expect_none(found)


def test_nothing_pure_awaits() -> None:
    waiting = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    expect_none(
        f"{name_of(path)}:{node.lineno}"
        for path, tree in modules(*PURE)
        for node in ast.walk(tree)
        if isinstance(node, waiting)
    )


def test_the_ledger_and_attribution_compute_without_fractions() -> None:
    """Floats round differently from machine to machine; amounts and scores are integers from the start."""
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path, tree in modules("gossip_ledger", "attribution")
        for node in ast.walk(tree)
        if (isinstance(node, ast.Constant) and isinstance(node.value, float))
        or (isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div))
        or (isinstance(node, ast.Call) and dotted(node.func) == "float")
    ]
    expect_none(found)


def test_values_of_the_pure_core_are_frozen() -> None:
    loose = []
    for path, tree in modules(*PURE):
        for node in ast.walk(tree):
            if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
                continue  # a private one may be the scratch paper of one function
            for decorator in node.decorator_list:
                call = decorator.func if isinstance(decorator, ast.Call) else decorator
                if dotted(call).rsplit(".", 1)[-1] != "dataclass":
                    continue
                keywords = decorator.keywords if isinstance(decorator, ast.Call) else []
                given = {word.arg for word in keywords if getattr(word.value, "value", None) is True}
                if "frozen" not in given:
                    loose.append(f"{name_of(path)}: {node.name}")
    expect_none(loose)


def test_no_mutable_state_at_module_level() -> None:
    """Constants in capitals may be dicts (tables); a lowercase list, dict or set is state."""
    mutable = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
    makers = {"list", "dict", "set", "bytearray", "defaultdict", "OrderedDict", "Counter", "deque"}
    found = []
    for path, tree in modules(*PACKAGES):
        for node in tree.body:
            if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
                continue
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            made = isinstance(node.value, ast.Call) and dotted(node.value.func).rsplit(".", 1)[-1] in makers
            if made or isinstance(node.value, mutable):
                names = [dotted(target) for target in targets]
                found += [
                    f"{name_of(path)}: {name}" for name in names if name not in ("__all__", name.upper())
                ]
    expect_none(found)


def test_every_bound_is_documented_and_used() -> None:
    sources = [texts()[path] for path, _ in modules(*PACKAGES)]
    wrong = []
    for path, tree in modules(*PACKAGES):
        if path.name != "limits.py":
            continue
        for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
            if not isinstance(node, ast.Assign | ast.AnnAssign):
                continue
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            name = dotted(target)
            if not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)):
                wrong.append(f"{name_of(path)}: {name} does not say what it bounds, and in which unit")
            if sum(len(re.findall(rf"\b{name}\b", source)) for source in sources) < 2:
                wrong.append(f"{name_of(path)}: {name} bounds nothing")
    expect_none(wrong)


def test_suppressions_name_what_they_suppress() -> None:
    bare = re.compile(r"#\s*(noqa(?!: ?[A-Z]+\d+)|type: ignore(?!\[)|pyright: ignore(?!\[))")
    this = "tests/tidy/test_code.py"
    expect_none(
        f"{name_of(path)}:{number}"
        for path in python_files()
        if name_of(path) != this
        for number, line in enumerate(texts()[path].splitlines(), 1)
        if bare.search(line)
    )
