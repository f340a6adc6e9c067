"""The definitions of the contestants, as far as they can be checked without them."""

from __future__ import annotations

import re
from pathlib import Path

from config.load import load
from tests.benchmarks.peers import MODEL, PEERS, UPSHIFT

KNOWN = {"install", "work", "port", "upstream", "spare", "python"}


def test_definitions_use_known_words_only() -> None:
    for peer in PEERS.values():
        texts = [*peer.argv, *peer.files.values(), *peer.environment.values(), *peer.headers.values()]
        assert {word for text in texts for word in re.findall(r"@(\w+)@", text)} <= KNOWN, peer.name
        assert any("@port@" in text for text in texts), peer.name
        assert any("@upstream@" in text for text in texts), peer.name


def test_our_own_configuration_is_valid(tmp_path: Path) -> None:
    file = tmp_path / "upshift.yaml"
    text = PEERS[UPSHIFT].files["upshift.yaml"]
    file.write_text(
        text.replace("@port@", "1234").replace("@upstream@", "127.0.0.1:80").replace("@work@", str(tmp_path))
    )
    settings = load(file, environ={}).settings
    assert [model.name for model in settings.models] == [MODEL]
