"""What docs/security.md and deploy/systemd promise can be looked up."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "security.md"
UNIT = ROOT / "deploy" / "systemd" / "upshift.service"
# Exposure by `systemd-analyze security`, from 0 (best) to 10, in tenths.
MOST_EXPOSED = 20
# Host confusion (CVE-2026-48710), trailers (CVE-2026-22815), lenient chunks (CVE-2025-43859).
FIRST_GOOD = {"starlette": (1, 0, 1), "aiohttp": (3, 13, 4), "h11": (0, 16, 0)}


def test_every_test_that_the_page_names_exists() -> None:
    named = re.findall(r"`([a-z_/…]+\.py|…)(?:::(test_\w+))?`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > 40
    path = ROOT
    for name, function in named:
        if name != "…":  # the file before
            path = ROOT / name if "/" in name else ROOT / "tests" / "gateway" / name
        assert path.exists(), name
        assert not function or f"def {function}(" in path.read_text(encoding="utf-8"), f"{path}::{function}"


def test_every_attack_class_and_every_case_of_the_limits_has_a_test() -> None:
    attacks, cases = PAGE.read_text(encoding="utf-8").split("### Token limits")
    rows = re.findall(r"^\| ([\d, ]*) \|.*\| ([^|]*) \|$", attacks, re.MULTILINE)
    assert all("`test" in tests for _, tests in rows)
    numbers = [int(number) for numbers, _ in rows for number in re.findall(r"\d+", numbers)]
    assert sorted(numbers) == list(range(1, 31))
    named = set(re.findall(r"::(test_\w+)", cases))
    file = ROOT / "tests" / "gateway" / "test_peer_limits.py"
    assert named == set(re.findall(r"^async def (test_\w+)", file.read_text(encoding="utf-8"), re.MULTILINE))


def test_no_version_that_is_known_to_be_bad_is_locked() -> None:
    text = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "deploy" / "lock").glob("*.txt"))
    for name, first_good in FIRST_GOOD.items():
        locked = re.findall(rf"^{name}==(\d+)\.(\d+)\.(\d+)", text, re.MULTILINE)
        assert locked, name
        assert all(tuple(map(int, version)) >= first_good for version in locked), (name, locked)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_unit_is_valid_and_little_exposed(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/upshift/.venv/bin/upshift", "/bin/true"))
    for command in (["verify", str(unit)], ["security", "--offline=true", f"--threshold={MOST_EXPOSED}", str(unit)]):
        done = subprocess.run(["systemd-analyze", *command], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
