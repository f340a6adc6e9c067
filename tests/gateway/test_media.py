"""Media by URL are not fetched unless the configuration says so, however the address is written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backends.base import Operation
from gateway.errors import InvalidBody
from gateway.intake import decode
from tests.fakes import FakeBackend
from tests.gateway.running import serving

PICTURE = "data:image/png;base64,iVBORw0KGgo="
URLS = [
    *(
        "http://169.254.169.254/latest/meta-data/",
        "https://example.com/a.png",
        "file:///etc/passwd",
        "gopher://x",
        "//x/y",
    ),
    *(" http://x", "HTTP://x", "\thttp://x", "http:\\\\x", "http://[::ffff:127.0.0.1]/", "http://2130706433/", ""),
    *(" data:image/png,x", "DATA:image/png,x", "data;http://x"),
]


def asking(part: Any, field: str = "messages") -> bytes:
    return json.dumps(
        {"model": "m", field: [{"role": "user", "content": [{"type": "text", "text": "?"}, part]}]}
    ).encode()


def told(body: bytes) -> str:
    with pytest.raises(InvalidBody) as caught:
        decode(body, Operation.CHAT, "r")
    assert caught.value.param in {"messages", "input"}
    return str(caught.value)


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("kind", ["image", "video", "audio", "file"])
def test_address_is_refused(kind: str, url: str) -> None:
    for value in ({"url": url}, {"detail": "low", "url": url}, url):
        body = asking({"type": f"{kind}_url", f"{kind}_url": value})
        assert f"`{kind}_url` should be a data: URL" in told(body)
        assert decode(body, Operation.CHAT, "r", remote_media=True).body == body


def test_no_way_to_write_it_hides_it() -> None:
    part = json.dumps({"type": "image_url", "image_url": {"url": "http://x"}})
    for hidden in (
        part.replace("image_url", "image\\u005furl"),
        part.replace("_url", "_ur\\u006c"),
        part.replace('"url"', '"\\u0075rl"'),
        part.replace("http", "\\u0068ttp"),
        part.replace("_url", "_URL"),
        part.replace("_url", "_uRl"),
        part.replace('"url"', '"Url"'),
        part.replace('{"url"', '{"url": "' + PICTURE + '", "url"'),
        f'{{"image_url": "{PICTURE}", "image_url": "http://x"}}',
        f'{{"a": [{{"b": {part}}}]}}',
    ):
        told(asking(0).replace(b"0", hidden.encode()))
    twice = b'{"model":"m","messages":[],"messages":[{"content":[%b]}]}' % part.encode()
    told(twice)
    told(asking(json.loads(part), "input"))
    with pytest.raises(InvalidBody, match="data: URL"):
        decode(asking(json.loads(part), "Messages"), Operation.CHAT, "r")


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": PICTURE}},
        {"type": "image_url", "image_url": PICTURE},
        {"type": "text", "text": "see http://example.com, image_url and \\u0068"},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"image_url": None},
    ],
)
def test_what_is_in_the_request_passes(part: Any) -> None:
    body = asking(part)
    assert decode(body, Operation.CHAT, "r").body == body


def test_addresses_outside_a_conversation_are_nobodys_media() -> None:
    fields = {"metadata": {"callback_url": "https://example.com"}, "tools": [{"image_url": {"type": "string"}}]}
    decode(json.dumps({"model": "m", "messages": [], **fields}).encode(), Operation.CHAT, "r")


async def test_setting_decides() -> None:
    part = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    for allowed in (False, True):
        backend = FakeBackend()
        async with serving(backend, remote_media=allowed) as gateway:
            answer = await gateway.chat(messages=[{"role": "user", "content": [part]}])
            assert answer.status_code == (200 if allowed else 400)
            assert allowed or answer.json()["error"]["param"] == "messages"
            assert len(backend.requests) == allowed
