"""Looks for secrets in everything that a run of the tests leaves behind, and fails the run that has let one out.

Looked through are what each test wrote and logged (also what it read back by `capsys`), and every file below pytest's
temporary folder: logs, traces, stores of keys, figures. What is looked for: intact API keys of ours, whole JSON Web
Tokens, and words with `canary-` in them, which tests send as prompts, answers and secrets and nothing else contains.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Generator, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from gateway.keys import is_intact

# For tests that send anything and look at something else.
PROMPT = "prompt-canary-asked-31d7"
ANSWER = "answer-canary-told-31d7"

KEY, TOKEN, ASKED, TOLD, SECRET = "an API key", "a token", "a prompt", "an answer", "a secret"

# Where they may be: where a test itself puts them, or a person is given a new key.
EXPECTED: Mapping[str, frozenset[str]] = {
    # Its error quotes the headers, and pytest listens before our formatter, which takes the key out.
    "tests/gateway/test_attacks.py::test_authentication_that_fails_lets_nobody_in (log *)": frozenset({KEY}),
    # What `upshift keys add` and `rotate` are for.
    "tests/gateway/cli/test_keys.py::* (stdout*)": frozenset({KEY}),
    # Written by tests alone: settings with a password in an address, a file that settings name.
    "*/upshift.yaml": frozenset({SECRET}),
    "test_password_opens_and_is_tol*/password": frozenset({SECRET}),
}
# Weights, of which there may be much.
_UNREAD = frozenset((".gguf", ".safetensors"))

_KEYS = re.compile(rb"up-[0-9A-Za-z]{39}")
_TOKENS = re.compile(rb"eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}")
_CANARIES = re.compile(rb"(?:(prompt|answer)-)?canary-\w")
_ASKED_OR_TOLD = {b"prompt": ASKED, b"answer": TOLD}


def kinds(data: bytes) -> set[str]:
    """What of it is found in `data`."""
    found = set()
    if any(is_intact(match[0].decode()) for match in _KEYS.finditer(data)):
        found.add(KEY)
    if _TOKENS.search(data):
        found.add(TOKEN)
    # The search for the word alone is a hundred times faster than the other one.
    if data.find(b"canary-") >= 0:
        found |= {_ASKED_OR_TOLD.get(match[1], SECRET) for match in _CANARIES.finditer(data)}
    return found


def files(folder: Path) -> Iterator[Path]:
    """Every regular file below `folder` that may hold text."""
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in names):
            # Not through a link, which may lead anywhere; a pipe would be waited for.
            if path.suffix not in _UNREAD and path.is_file() and not path.is_symlink():
                yield path


class Watch:
    """The plugin of pytest that does it. `expected` are kinds by place, a pattern for `test (where it was written)`, or
    for paths below the temporary folder."""

    def __init__(self, expected: Mapping[str, frozenset[str]] = EXPECTED) -> None:
        self._expected = expected
        self._folder: Path | None = None
        self._found: dict[str, set[str]] = {}
        self._bytes = 0
        self._seconds = 0.0

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, request: pytest.FixtureRequest) -> Generator[None, Any, Any]:
        """What a test reads back is in no report of it, and the folder is made for the first test that wants it."""
        value = yield
        if isinstance(value, pytest.TempPathFactory):
            self._folder = value.getbasetemp()
        if isinstance(value, pytest.CaptureFixture):
            self._listen_in(value, request.node.nodeid)
        return value

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """The last report of a test has everything that it wrote and logged."""
        if report.when == "teardown":
            for title, text in report.sections:
                self._hear(report.nodeid, title.removeprefix("Captured "), text)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """No fixture is left that writes, and no file has been removed yet."""
        if self._folder is not None:
            self._look_through(self._folder)
        if self._found and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Where something was found, and of which kind; never what."""
        if self._found:
            terminalreporter.section("secrets", red=True)
        for place, found in sorted(self._found.items()):
            terminalreporter.write_line(f"SECRET {' and '.join(sorted(found))} in {place}", red=True)
        size = f"{self._bytes / 2**20:.0f} MiB in {self._seconds:.1f} s"
        terminalreporter.write_line(f"looked for secrets in {size}: {'found' if self._found else 'none'}")

    def _listen_in(self, capture: pytest.CaptureFixture[Any], test: str) -> None:
        read = capture.readouterr

        def readouterr() -> Any:
            captured = read()
            self._hear(test, "stdout", str(captured.out))
            self._hear(test, "stderr", str(captured.err))
            return captured

        capture.readouterr = readouterr  # type: ignore[method-assign]

    def _hear(self, test: str, where: str, text: str) -> None:
        started = time.perf_counter()
        # Without the test's parameters, which may be secrets.
        self._look(f"{test.partition('[')[0]} ({where})", text.encode(errors="replace"))
        self._seconds += time.perf_counter() - started

    def _look_through(self, folder: Path) -> None:
        started = time.perf_counter()
        for path in files(folder):
            # What a test has locked away, or somebody removes just now.
            with contextlib.suppress(OSError):
                self._look(str(path.relative_to(folder)), path.read_bytes())
        self._seconds += time.perf_counter() - started

    def _look(self, place: str, data: bytes) -> None:
        found = kinds(data)
        for pattern, allowed in self._expected.items():
            if fnmatch(place, pattern):
                found -= allowed
        if found:
            self._found.setdefault(place, set()).update(found)
        self._bytes += len(data)
