"""sslyze, which knows more attacks on TLS than we do, against a gateway with a certificate for development."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from gateway.devcert import make_server
from tests.e2e.gateway import running_gateway
from tests.tools import tool

# Mozilla's "intermediate" wants these two curves refused, for their cost; neither is weak. Before 3.15 Python's ssl
# cannot choose curves but for a single one, which would cost X25519.
ACCEPTED = {"tls_curves: TLS curves {'X448', 'secp521r1'} are supported, but should be rejected."}


def test_scan_finds_nothing_but_two_strong_curves(tmp_path: Path) -> None:
    made = make_server(tmp_path / "tls", ("localhost", "127.0.0.1"))
    config = "models: [{name: m, gguf: {openai: 'http://127.0.0.1:9'}}]\n"
    config += f"tls: {{certificate: {made.certificate}, key: {made.key}}}\n"
    with running_gateway(tmp_path, config) as gateway:
        options = ["--certinfo_ca_file", str(made.authority), "--mozilla_config=intermediate"]
        target = "localhost:" + gateway.url.rpartition(":")[2]
        done = subprocess.run(
            [str(tool("sslyze")), *options, target], capture_output=True, text=True, timeout=300, check=False
        )
    report, _, verdict = done.stdout.partition("COMPLIANCE AGAINST TLS CONFIGURATION")
    assert "SCANS COMPLETED" in report, done.stdout + done.stderr
    assert "VULNERABLE -" not in report
    for wanted in ("Not vulnerable to Heartbleed", "Compression disabled", "Client Renegotiation DoS Attack:   OK"):
        assert wanted in report
    findings = {_sorted(finding) for finding in re.findall(r"^\s+\* (.*)$", verdict, re.MULTILINE)}
    assert findings <= ACCEPTED, verdict


def _sorted(finding: str) -> str:
    """The same with what is a set to sslyze in order."""
    return re.sub(r"\{(.*)\}", lambda match: "{" + ", ".join(sorted(match[1].split(", "))) + "}", finding)
