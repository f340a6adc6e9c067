"""schemathesis, which makes requests up from what the gateway says of itself, against a gateway with a real engine."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from gateway.keys import hash_of, new_key
from tests.e2e.gateway import running_gateway
from tests.e2e.prometheus import free_port
from tests.engine import wait_for
from tests.tools import tool

KEY = new_key()
# Those that say something about the gateway; schemas of answers are the engines' affair.
CHECKS = "not_a_server_error,ignored_auth,unsupported_method,content_type_conformance"
# Requests for each operation and phase; all of it is to be over in a minute.
EXAMPLES = 25


def test_no_request_that_the_documents_tell_of_is_answered_with_a_server_error(
    tmp_path: Path, tiny_model: Path
) -> None:
    (tmp_path / "keys.yaml").write_text(json.dumps({"keys": [{"name": "a", "hash": hash_of(KEY)}]}))
    port = free_port()
    config = (
        f"models: [{{name: m, aliases: [org/m], context_tokens: 256, gguf: {{source: {tiny_model}, threads: 1}}}}]\n"
        f"auth: {{keys_file: {tmp_path / 'keys.yaml'}}}\nadmin: {{port: {port}}}\n"
        "limits: {default: {concurrent: 64}, tiers: {gold: {concurrent: 3}}}\n"
    )
    with running_gateway(tmp_path, config) as gateway:
        wait_for(lambda: gateway.http.get("/health").status_code == 200, 60)
        for document in (f"{gateway.url}/openapi.json", f"http://127.0.0.1:{port}/admin/openapi.json"):
            assert_no_server_error(document, tmp_path)
    assert "Traceback" not in gateway.log.read_text()


def assert_no_server_error(document: str, folder: Path) -> None:
    options = [
        "--checks",
        CHECKS,
        "--phases",
        "examples,coverage,fuzzing",
        "--max-examples",
        str(EXAMPLES),
    ]
    options += ["--header", f"Authorization: Bearer {KEY}", "--mode", "all", "--seed", "1", "--no-color"]
    options += [
        "--request-timeout",
        "30",
        "--generation-database",
        "none",
        "--generation-with-security-parameters",
        "false",
    ]
    done = subprocess.run(
        [str(tool("schemathesis")), "run", document, *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    print(done.stdout[-2000:])
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b[1-9][0-9]{2,} generated", done.stdout), done.stdout
