"""tests/canary.py: it finds what it looks for, wherever a test leaves it, fails the run, and repeats no secret."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from gateway.keys import new_key
from tests.canary import ANSWER, ASKED, KEY, PROMPT, SECRET, TOKEN, TOLD, kinds

ROOT = Path(__file__).resolve().parent.parent
TOKEN_TEXT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJjYW5hcnkifQ.c2lnbmF0dXJl"


CASES: dict[str, tuple[str, set[str]]] = {
    "nothing": ("up-, up-123, canary, test_canary, canaries", set()),
    "key": (f"Bearer {new_key()}.", {KEY}),
    "key between letters": (f"x{new_key()}x", {KEY}),
    "mistyped key, which opens nothing": ("up-" + "0" * 39, set()),
    "part of a key": (new_key()[:-1], set()),
    "token": (f"token={TOKEN_TEXT}&", {TOKEN}),
    "part of a token": (TOKEN_TEXT.rpartition(".")[0], set()),
    "prompt": (f'"{PROMPT}"', {ASKED}),
    "answer": (f'"{ANSWER}"', {TOLD}),
    "password": ("redis://:canary-5-8c1f@host", {SECRET}),
    "two": (f"{PROMPT}{new_key()}", {ASKED, KEY}),
}


@pytest.mark.parametrize("case", CASES)
def test_kinds_are_told_apart(case: str) -> None:
    text, found = CASES[case]
    assert kinds(text.encode()) == found


CONFTEST = """
from tests.canary import KEY, Watch

def pytest_configure(config):
    config.pluginmanager.register(Watch({"*::test_shows_a_new_key (stdout)": frozenset({KEY})}))
"""
CLEAN = """
import logging
from gateway.keys import hash_of, new_key

def test_writes_no_secret(tmp_path):
    print(hash_of(new_key()))
    logging.warning("a key was made")
    (tmp_path / "a.log").write_text("canary")

def test_shows_a_new_key(capsys):
    print(new_key())
    capsys.readouterr()
"""
LEAKS = """
import logging
import sys
import pytest
from gateway.keys import new_key
from tests.canary import ANSWER, PROMPT

@pytest.fixture
def late():
    yield
    print(PROMPT)

@pytest.fixture(scope="session")
def last(tmp_path_factory):
    yield
    (tmp_path_factory.mktemp("last") / "engine.jsonl").write_text(ANSWER)

def test_prints(last):
    print(new_key(), file=sys.stderr)

def test_logs():
    logging.warning("%s", PROMPT)

def test_ends_badly(late):
    pass

def test_reads_back(capsys):
    print(new_key())
    assert capsys.readouterr().out

@pytest.mark.parametrize("secret", ["canary-1-8c1f"])
def test_leaves_a_file(tmp_path, secret):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "dump").write_bytes(b"\\0" * 100_000 + secret.encode())
"""
PLACES = [
    "an API key in test_inner.py::test_prints (stderr call)",
    "a prompt in test_inner.py::test_logs (log call)",
    "a prompt in test_inner.py::test_ends_badly (stdout teardown)",
    "an API key in test_inner.py::test_reads_back (stdout)",
    "a secret in test_leaves_a_file_canary_1_8c0/deep/dump",
    "an answer in last0/engine.jsonl",
]


def run(tests: str) -> tuple[int, str]:
    """Runs pytest on `tests`, outside of the folder through which this run itself is going to look."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "conftest.py").write_text(CONFTEST)
        Path(folder, "test_inner.py").write_text(tests)
        # By the same settings as all tests: they decide how long a test's files are kept.
        settings = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", folder, "--basetemp", f"{folder}/left"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *settings, folder],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    return done.returncode, done.stdout + done.stderr


def test_run_that_leaks_fails_and_says_where() -> None:
    code, told = run(LEAKS)
    assert "5 passed" in told
    assert code == 1, told
    assert sorted(line for line in told.splitlines() if line.startswith("SECRET ")) == sorted(
        f"SECRET {place}" for place in PLACES
    )
    assert kinds(told.encode()) == set()


def test_run_that_leaks_nothing_passes() -> None:
    code, told = run(CLEAN)
    assert code == 0, told
    assert "looked for secrets in 0 MiB" in told
    assert "2 passed" in told
