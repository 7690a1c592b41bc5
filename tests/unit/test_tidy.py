"""The house rules that no other tool checks: sizes, docstrings, torch, nothing unpickled."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("shoal", "node", "protocols", "dht", "crdt", "wire")
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
TORCH_ROOMS = (
    "protocols/sharding/",
    "shoal/trainer.py",
    "shoal/learn_torch.py",
    "shoal/pytorch/",
    "shoal/hf.py",
)
FORBIDDEN_CALLS = {
    "pickle.load", "pickle.loads", "marshal.loads", "torch.load", "torch.jit.load", "eval", "exec",
}  # fmt: skip


def sources() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_there_is_something_to_check() -> None:
    assert len(list(sources())) > 30


def test_files_fit() -> None:
    every = [*sources(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    long = {relative(path): len(path.read_text().splitlines()) for path in every}
    assert {name: lines for name, lines in long.items() if lines > FILE_LINES_MAX} == {}


def test_functions_fit_a_screen() -> None:
    long: dict[str, int] = {}
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    long[f"{relative(path)}:{node.name}"] = lines
    assert long == {}


def test_modules_say_what_they_are_for() -> None:
    silent = [
        relative(path)
        for path in sources()
        if path.read_text().strip() and ast.get_docstring(ast.parse(path.read_text())) is None
    ]
    assert silent == []


def test_init_files_are_empty() -> None:
    full = [relative(p) for p in sources() if p.name == "__init__.py" and p.read_text().strip()]
    assert full == ["shoal/__init__.py"]


def test_imports_are_absolute() -> None:
    found = [
        f"{relative(path)}:{node.lineno}"
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level > 0
    ]
    assert found == []


def test_torch_stays_in_its_rooms() -> None:
    strangers: list[str] = []
    for path in sources():
        if relative(path).startswith(TORCH_ROOMS):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            if any(name.split(".")[0] in ("torch", "transformers") for name in names):
                strangers.append(f"{relative(path)}:{node.lineno}")
    assert strangers == []


def test_nothing_is_unpickled_or_evaluated() -> None:
    calls = [
        f"{relative(path)}:{node.lineno} {ast.unparse(node.func)}"
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in FORBIDDEN_CALLS
    ]
    assert calls == []


def test_no_bare_type_ignore() -> None:
    found = [
        f"{relative(path)}:{number}"
        for path in sources()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if "type: ignore" in line and "type: ignore[" not in line
    ]
    assert found == []


@pytest.mark.parametrize("module", ["node.daemon", "node.cli.main", "shoal"])
def test_the_daemon_and_the_client_start_without_torch(module: str) -> None:
    code = (
        f"import {module}, sys; bad = {{'torch', 'transformers', 'matplotlib'}} & set(sys.modules);"
        "sys.exit(','.join(bad) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
