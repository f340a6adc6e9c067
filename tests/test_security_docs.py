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


def test_every_test_that_the_page_names_exists() -> None:
    named = re.findall(r"`([a-z_/…]+\.py|…)(?:::(test_\w+))?`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > 40
    path = ROOT
    for name, function in named:
        if name != "…":  # the file before
            path = ROOT / name if "/" in name else ROOT / "tests" / "gateway" / name
        assert path.exists(), name
        assert not function or f"def {function}(" in path.read_text(encoding="utf-8"), f"{path}::{function}"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_unit_is_valid_and_little_exposed(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/upshift/.venv/bin/upshift", "/bin/true"))
    for command in (["verify", str(unit)], ["security", "--offline=true", f"--threshold={MOST_EXPOSED}", str(unit)]):
        done = subprocess.run(["systemd-analyze", *command], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
