from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import Usage
from backends.sse import MAX_OBJECT_BYTES, UsageSniffer, error_event, usage_of


def event(fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 34,
    "total_tokens": 46,
    "prompt_tokens_details": {"cached_tokens": 5},
}
SEEN = Usage(12, 34, 5)
DELTA = event({"choices": [{"delta": {"content": 'say "usage": {"prompt_tokens": 99}'}}], "usage": None})
STREAM = DELTA + DELTA + event({"choices": [], "usage": USAGE}) + b"data: [DONE]\n\n"
WHOLE = json.dumps({"usage": USAGE, "choices": [{"message": {"content": "usage", "role": "usage"}}]}).encode()
PRETTY = json.dumps({"choices": [], "usage": USAGE}, indent=2).replace("\n", "\r\n").encode()


def sniff(*chunks: bytes) -> Usage | None:
    sniffer = UsageSniffer()
    for chunk in chunks:
        sniffer.feed(chunk)
    return sniffer.usage


@st.composite
def cut(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """`data` in pieces, empty ones included."""
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(STREAM, id="stream"),
        pytest.param(WHOLE, id="whole"),
        pytest.param(PRETTY, id="pretty"),
        pytest.param(STREAM.replace(b"\n", b"\r\n"), id="crlf"),
        pytest.param(event({"usage": {"prompt_tokens": 1}}) + STREAM, id="the-last-one-counts"),
        pytest.param(b'data: {"usage": {broken\n\n' + STREAM, id="after-a-broken-one"),
        pytest.param(WHOLE + event({"usage": {}}), id="an-empty-one-counts-for-nothing"),
    ],
)
def test_usage_is_found_in_one_piece_and_byte_by_byte(answer: bytes) -> None:
    assert sniff(answer) == SEEN
    assert sniff(*(answer[index : index + 1] for index in range(len(answer)))) == SEEN


@given(st.sampled_from([STREAM, WHOLE, PRETTY]).flatmap(cut))
def test_usage_is_found_however_the_answer_is_cut(chunks: list[bytes]) -> None:
    assert sniff(*chunks) == SEEN


@given(st.lists(st.binary(max_size=60) | st.sampled_from([b'"usage"', b": {", b'{"usage":', b"{" * 3000, b"\n\n"])))
def test_nothing_makes_it_raise_or_hoard(chunks: list[bytes]) -> None:
    sniffer = UsageSniffer()
    for chunk in chunks:
        sniffer.feed(chunk)
        assert len(sniffer.held) <= MAX_OBJECT_BYTES + 64


def test_object_without_end_is_given_up() -> None:
    sniffer = UsageSniffer()
    for chunk in [b'{"usage": {"a": "', *[b"x" * 1000] * 10]:
        sniffer.feed(chunk)
        assert len(sniffer.held) <= MAX_OBJECT_BYTES + 64
    sniffer.feed(STREAM)
    assert sniffer.usage == SEEN


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(DELTA, id="only-in-the-text"),
        pytest.param(event({"usage": None}), id="null"),
        pytest.param(event({"usage": []}), id="list"),
        pytest.param(event({"usage": 5}), id="number"),
        pytest.param(event({"content": "usage"}), id="as-a-value"),
        pytest.param(event({"usage": {"total_tokens": 5}}), id="without-counts"),
        pytest.param(b'{"usage": ' + b'{"a": ' * 5000, id="deep"),
        pytest.param(b'{"usage": {"a": "' + b"x" * 10_000 + b'", "prompt_tokens": 1}}', id="too-long"),
    ],
)
def test_no_usage_is_none(answer: bytes) -> None:
    assert sniff(answer) is None
    assert sniff(*(answer[index : index + 100] for index in range(0, len(answer), 100))) is None


@pytest.mark.parametrize("lie", [-1, 1.5, "7", True, None, [], 10**30])
def test_impossible_counts_are_none(lie: object) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": lie, "prompt_tokens_details": {"cached_tokens": lie}}
    assert sniff(event({"usage": usage})) == Usage(3, 0, 0)


@pytest.mark.parametrize("details", [None, 5, [], "x", {}])
def test_missing_details_are_no_cached_tokens(details: object) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "prompt_tokens_details": details}
    assert sniff(event({"usage": usage})) == Usage(3, 4, 0)


def test_error_event_is_one_event_in_openai_shape() -> None:
    text = error_event("line\n\ndata: [DONE]\r\n\r\nü", "server_error", "backend_error")
    assert text.count(b"\n") == 2
    assert b"\r" not in text
    assert text.startswith(b"data: {")
    assert text.endswith(b"}\n\n")
    assert json.loads(text.removeprefix(b"data: ")) == {
        "error": {
            "message": "line\n\ndata: [DONE]\r\n\r\nü",
            "type": "server_error",
            "param": None,
            "code": "backend_error",
        }
    }


@pytest.mark.parametrize("cut", range(0, 110, 7))
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}', Usage(3, 2, 0)),
        ('{"prompt_tokens": 3, "total_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": null}', Usage(3, 2)),
        ('{"completion_tokens":2,"prompt_tokens":3,"prompt_tokens_details":{"cached_tokens":1}}', Usage(3, 2, 1)),
        ('{"prompt_tokens":3,"prompt_tokens":4}', Usage(4, 0, 0)),
        ('{"prompt_tokens":3,"extra":{"completion_tokens":9},"completion_tokens":2}', Usage(3, 2, 0)),
        ('{"prompt_tokens":1e2,"completion_tokens":2}', Usage(0, 2, 0)),
        ('{"total_tokens":5}', None),
        ("{}", None),
    ],
    ids=str,
)
def test_usage_is_found_in_every_order_and_cut(text: str, expected: Usage | None, cut: int) -> None:
    answer = b'{"id":"x","usage":' + text.encode() + b"}"
    sniffer = UsageSniffer()
    sniffer.feed(answer[:cut])
    sniffer.feed(answer[cut:])
    assert sniffer.usage == expected


NAMES = ("prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details")
VALUES = ("0", "7", "12", "9007199254740993", "-1", "1.5", "007", "null", '{"cached_tokens":5}', '{"cached_tokens": 5}')


@given(
    st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES)), max_size=6)
    | st.permutations(NAMES).map(lambda names: [(name, "null" if name == NAMES[3] else "7") for name in names]),
    st.sampled_from([",", ", "]),
    st.sampled_from([":", ": "]),
)
def test_usage_of_a_whole_answer_is_what_json_says(fields: list[tuple[str, str]], comma: str, colon: str) -> None:
    text = comma.join(f'"{name}"{colon}{value}' for name, value in fields)
    answer = f'{{"usage"{colon}{{{text}}}}}'
    try:
        usage = json.loads(answer)["usage"]
    except ValueError:
        usage = {}
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    details = usage.get("prompt_tokens_details")
    counts = prompt, completion, details.get("cached_tokens") if isinstance(details, dict) else None
    known = [count if isinstance(count, int) and 0 <= count < 2**53 else 0 for count in counts]
    assert usage_of(answer.encode()) == (None if prompt is None and completion is None else Usage(*known))
