"""Budgets and names that hold over the whole source tree; the layers are lint-imports' (pyproject.toml)."""

from __future__ import annotations

import ast
import importlib.metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("gateway", "routing", "backends", "config")
FUNCTION_LINES, FILE_LINES = 40, 300
# Longer for a reason.
LONG_FILES = {
    "backends/gguf/llama.py": "everything that touches llama_cpp",
    "backends/gguf/runner.py": "the engine loop in one piece",
    "backends/gguf/scheduler.py": "one class with one state",
    "backends/process.py": "one process with one state",
    "backends/http_connection.py": "one protocol with one state",
}
LONG_FUNCTIONS: dict[str, str] = {}


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def test_files_and_functions_stay_short() -> None:
    found = []
    for path in sources():
        name = str(path.relative_to(ROOT))
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) > FILE_LINES and name not in LONG_FILES:
            found.append(f"{name}: {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0]
                docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
                start = (first.end_lineno or 0) if docstring else node.lineno
                lines = (node.end_lineno or 0) - start + 1
                if lines > FUNCTION_LINES and f"{name}:{node.name}" not in LONG_FUNCTIONS:
                    found.append(f"{name}:{node.name}: {lines} lines")
    assert found == []


def test_every_module_says_its_job() -> None:
    assert [str(p.relative_to(ROOT)) for p in sources() if ast.get_docstring(ast.parse(p.read_text())) is None] == []


def test_nobody_else_owns_our_import_names() -> None:
    owners = importlib.metadata.packages_distributions()
    for name in PACKAGES:
        assert set(owners.get(name, ["upshift"])) == {"upshift"}, f"{name} is also installed by {owners[name]}"


def test_every_test_folder_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "tests").rglob("test_*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []
