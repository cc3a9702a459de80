"""What reviewers would otherwise have to watch: size, side effects, dead ends, stale pages."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from enginegate import errors, transitions

ROOT = Path(__file__).parents[2]
FUNCTION_LINES_MAX = 60
MODULE_LINES_MAX = 400

LONG_FOR_A_REASON: dict[str, str] = {
    "sample_engine.py": "one file that can be copied out as the start of an engine of one's own",
}
MAY_WRITE = {
    "journal/": "the single writer of durable state",
    "backends/": "engines' directories, key files and logs",
    "cli/": "`init` and `rekey` write key files, `demo` its temporary directory",
    "sample_engine.py": "an engine, not the gate: keeps its own data",
}
MAY_PRINT = {
    "cli/": "the command line is made of it",
    "sample_engine.py": "its output is what an engine's log is",
}
STARTS = {
    "__main__": "python -m enginegate",
    "cli": "the installed command",
    "sample_engine": "run as a program by the process backend",
}
MARKERS = re.compile(r"\b(TO[D]O|FIX[M]E|XX[X]|HA[C]K)\b")
OPENS_FOR_WRITING = {"write_text", "write_bytes", "O_WRONLY", "O_RDWR", "O_CREAT"}


def sources(folder: str) -> Iterator[tuple[str, str, ast.Module]]:
    """Yield each Python file below a folder: its path there, its text, its tree."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        yield path.relative_to(ROOT / folder).as_posix(), text, ast.parse(text)


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def allowed(name: str, places: dict[str, str]) -> bool:
    return name.startswith(tuple(places))


def writes(node: ast.AST) -> bool:
    """Return whether this opens a file to write it."""
    if isinstance(node, ast.Attribute):
        return node.attr in OPENS_FOR_WRITING
    if not isinstance(node, ast.Call):
        return False
    called = node.func
    if getattr(called, "id", getattr(called, "attr", "")) not in ("open", "fdopen"):
        return False
    modes = [*node.args[:2], *(word.value for word in node.keywords if word.arg == "mode")]
    texts = [mode.value for mode in modes if isinstance(mode, ast.Constant)]
    return any(re.fullmatch("[rbt]*[wax+][bt+]*", text) for text in texts if isinstance(text, str))


def imports(tree: ast.Module) -> Iterator[str]:
    """Yield every name in enginegate that a module imports, modules and what is in them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_functions_are_short() -> None:
    """Sixty lines at most: a function does one thing."""
    assert [
        f"{name}: {function.name}"
        for name, _, tree in sources("enginegate")
        for function in functions(tree)
        if (function.end_lineno or 0) - function.lineno >= FUNCTION_LINES_MAX
    ] == []


def test_modules_are_short() -> None:
    """Four hundred lines at most, or a reason stands above."""
    too_long = {
        name for name, text, _ in sources("enginegate") if len(text.splitlines()) > MODULE_LINES_MAX
    }
    assert too_long - LONG_FOR_A_REASON.keys() == set()


def test_only_the_command_line_prints() -> None:
    """Everything else logs, or returns what it has to say."""
    assert [
        f"{name}:{node.lineno}"
        for name, _, tree in sources("enginegate")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
        if not allowed(name, MAY_PRINT)
    ] == []


def test_files_are_written_in_few_places() -> None:
    """Durable state has a single writer; whoever else writes a file has a reason."""
    assert [
        f"{name}:{getattr(node, 'lineno', 0)}"
        for name, _, tree in sources("enginegate")
        for node in ast.walk(tree)
        if writes(node) and not allowed(name, MAY_WRITE)
    ] == []


def test_nothing_is_left_for_later() -> None:
    """What is not done is an issue or a sentence in the README, not a mark in the code."""
    assert [
        f"{folder}/{name}"
        for folder in ("enginegate", "tests", "bench")
        for name, text, _ in sources(folder)
        if MARKERS.search(text)
    ] == []


def test_every_module_is_used() -> None:
    """A module that nothing imports is dead, unless something starts it."""
    files = list(sources("enginegate"))
    used = {name for _, _, tree in files for name in imports(tree)}
    modules = {name.removesuffix(".py").replace("/", ".") for name, _, _ in files}
    dead = {
        module
        for module in modules
        if not module.endswith("__init__") and f"enginegate.{module}" not in used
    }
    assert dead - STARTS.keys() == set()


def test_every_test_says_what_it_shows() -> None:
    """Read alone, the docstrings of the tests explain the product."""
    silent = []
    for name, _, tree in sources("tests"):
        for function in functions(tree):
            said = (ast.get_docstring(function) or "").strip()
            if function.name.startswith("test_") and not said.endswith((".", "!", "?")):
                silent.append(f"{name}: {function.name}")
    assert silent == []


@pytest.fixture
def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_state_diagram_in_the_readme_is_the_one_that_is_followed(readme: str) -> None:
    """It is printed from the table of transitions."""
    assert f"```mermaid\n{transitions.diagram()}\n```" in readme


def test_the_readme_explains_every_error(readme: str) -> None:
    """Every code that a caller can meet stands in its table."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.code for kind in kinds if issubclass(kind, errors.GateError)}
    assert {
        code for code in codes if not re.search(rf"^\|.*`{code}`", readme, re.MULTILINE)
    } == set()
