"""Documentation that can be checked: links, the README's commands, dependency tables."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]

# Every command the README shows, and the test that runs it.
TESTED = {
    "make run": "tests/e2e/test_first_light.py",
    "curl http://127.0.0.1:8484/v1/chat/completions": "tests/e2e/test_first_light.py",
    ".venv/bin/upshift serve --model": "tests/e2e/test_first_light.py",
    ".venv/bin/upshift run": "tests/e2e/test_first_light.py",
    ".venv/bin/upshift serve --config config/example.yaml": "tests/e2e/test_first_light.py",
    "make test": ".ci/run",
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_command_of_the_readme_is_run_by_a_test() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    commands = "".join(blocks).replace("\\\n", " ").splitlines()
    assert commands
    for command in commands:
        places = [place for beginning, place in TESTED.items() if command.startswith(beginning)]
        assert places, f"nothing runs: {command}"
        assert (ROOT / places[0]).exists()


def test_dependencies_are_the_explained_ones() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    declared = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["gguf"],
        *project["project"]["optional-dependencies"]["oidc"],
        *project["dependency-groups"]["dev"],
        *project["dependency-groups"]["build"],
    ]
    names = {re.split(r"[\[<>=~]", requirement)[0] for requirement in declared}
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| ([a-z0-9-]+) \|", page, flags=re.MULTILINE)) - {"package"} == names


def test_every_dependency_is_locked_with_a_hash() -> None:
    for lock in (ROOT / "deploy" / "lock").rglob("*.txt"):
        for pin in re.findall(r"^[a-z].*(?:\n .*)*", lock.read_text(), flags=re.MULTILINE):
            assert "==" in pin, pin
            assert "--hash=sha256:" in pin, pin


def test_the_architecture_page_is_short() -> None:
    assert len((ROOT / "docs" / "architecture.md").read_text().splitlines()) < 150
