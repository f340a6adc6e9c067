"""What the log shows of a path: words that are known, whatever a client put between them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.keys import new_key
from gateway.paths import MOST_SEGMENTS, OTHER, WORDS, shown
from tests.fakes import FakeBackend
from tests.gateway.running import serving

KEY = new_key()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/v1/models", "/v1/models"),
        ("/v1/embeddings", "/v1/embeddings"),
        ("/", "/"),
        ("//metrics", "//metrics"),
        ("/admin/keys/alice/rotate", "/admin/keys/*/rotate"),
        (f"/v1/models/{KEY}", "/v1/models/*"),
        (f"/{KEY}/v1/models", "/*/v1/models"),
        (f"/v1{KEY}", "/*"),
        ("/V1/Models", "/*/*"),
        ("/v1/models\r\nx", "/v1/*"),
        ('/v1/models","key":"boss', "/v1/*"),
        ("/v1" * 6 + "/v1/v1/v1", "/v1" * 6 + "/*"),
        ("/" * 60_000, "/" * 6 + "/*"),
        ("/" + "a" * 60_000, "/*"),
        ("http://localhost/v1/models", "*//*/v1/models"),
        ("*", "*"),
        ("", ""),
    ],
    ids=lambda value: str(value)[:24],
)
def test_only_words_that_are_known_are_shown(path: str, said: str) -> None:
    assert shown(path) == said


@given(st.lists(st.text() | st.sampled_from(sorted(WORDS))).map("/".join))
def test_nothing_else_ever_is(path: str) -> None:
    segments = shown(path).split("/")
    assert len(segments) <= MOST_SEGMENTS + 2
    assert set(segments) <= WORDS | {OTHER, ""}


def test_words_need_no_escaping() -> None:
    assert all(re.fullmatch(r"[a-z0-9._]{1,20}", word) for word in WORDS)


async def test_every_word_of_our_own_routes_is_shown() -> None:
    async with serving(FakeBackend()) as gateway:
        described = [(await gateway.client.get(path)).json() for path in ("/openapi.json", "/admin/openapi.json")]
    paths = [re.sub(r"\{[^}]*\}", OTHER, path) for document in described for path in document["paths"]]
    assert len(paths) > 12
    assert [shown(path) for path in paths] == paths
