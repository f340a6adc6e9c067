"""What a body must be before anybody else sees it. None of these may ever become a 500."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.base import Operation
from gateway.errors import BodyTooLarge, InvalidBody, UnsupportedMedia
from gateway.intake import _ENVELOPE, MAX_BRACKETS, MAX_FIELDS, MAX_TEXTS, MAX_VALUES, check_headers, decode


def chat(body: bytes) -> Any:
    return decode(body, Operation.CHAT, "r1")


def test_body_is_kept_as_it_came() -> None:
    body = b'{ "model": "m",\t"stream": true, "stream_options": {"include_usage": true}, "x": [1.50, "\\u00e9"] }'
    request = chat(body)
    assert request.body is body
    assert (request.model, request.stream, request.include_usage) == ("m", True, True)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","stream":true}',
        b' {"model":"m", "stream_options":null, "stream":true } ',
        b'{"stream":true,"model":"}"}',
    ],
    ids=repr,
)
def test_streams_are_asked_for_their_usage(body: bytes) -> None:
    request = chat(body)
    assert (request.include_usage, request.hides_usage) == (True, True)
    assert json.loads(request.body) == json.loads(body) | {"stream_options": {"include_usage": True}}


def test_commas_of_a_text_are_no_values() -> None:
    text = '1,"2",\\,' * MAX_VALUES
    assert json.loads(chat(json.dumps({"model": "m", "prompt": text}).encode()).body)["prompt"] == text


@pytest.mark.parametrize(
    "options", ["null", "{}", '{"include_usage" : false}', '{"include_usage":null,"x":"}"}'], ids=str
)
def test_a_client_that_wants_no_usage_is_counted_all_the_same(options: str) -> None:
    body = b'{"model":"m","stream_options" : %b,"stream":true,"x":"\\n"}' % options.encode()
    request = chat(body)
    assert (request.include_usage, request.hides_usage) == (True, True)
    assert request.body == b'{"model":"m","stream_options":{"include_usage":true},"stream":true,"x":"\\n"}'


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","stream":true,"tools":[{"stream_options":{}}]}',
        b'{"model":"m","stream":true,"stream_options":{},"x":{"stream_options":{}}}',
        b'{"model":"m","stream":true,"stream\\u005foptions":{},"x":{"stream_options":{}}}',
        b'{"model":"m","stream":true,"stream_options":{"a":[1,{"b":2}]}}',
    ],
    ids=repr,
)
def test_only_the_clients_own_word_on_usage_is_replaced(body: bytes) -> None:
    request = chat(body)
    assert request.hides_usage
    assert request.body == body[:-1] + b',"stream_options":{"include_usage":true}}'


@pytest.mark.parametrize(
    "fields",
    [{}, {"stream": None}, {"stream": False}, {"stream_options": None}, {"stream": None, "stream_options": None}],
    ids=str,
)
def test_not_streaming_is_the_default(fields: dict[str, Any]) -> None:
    request = chat(json.dumps({"model": "m", **fields}).encode())
    assert (request.stream, request.include_usage) == (False, False)


@pytest.mark.parametrize(
    ("body", "param", "text"),
    [
        (b"", None, "not valid JSON"),
        (b"{", None, "not valid JSON"),
        (b"{'model': 'm'}", None, "not valid JSON"),
        (b'{"model":"m"} x', None, "not valid JSON"),
        (b'{"model":"m",}', None, "not valid JSON"),
        (b'\xef\xbb\xbf{"model":"m"}', None, "byte order mark"),
        (b'{"model":"m","x":"\xff"}', None, "not valid UTF-8"),
        ('{"model":"m"}'.encode("utf-16"), None, "not valid UTF-8"),
        (b'{"model":"m","x":"\x00"}', None, "not valid JSON"),
        (b'{"model":"m","x":NaN}', None, "NaN"),
        (b'{"model":"m","x":[-Infinity]}', None, "-Infinity"),
        (b'{"model":"m","x":' + b"9" * 5000 + b"}", None, "too many digits"),
        (b'{"model":"m","x":' + b"[" * 100_000, None, "nested too deeply"),
        (b'{"model":"m","x":' + b'{"a":' * 100_000, None, "nested too deeply"),
        (b'{"model":"m","x":[' + b"[]," * MAX_BRACKETS + b"1]}", None, "arrays and objects"),
        (b'{"model":"m","x":{' + b'"a":1,' * (MAX_TEXTS) + b'"b":1}}', None, "keys and texts"),
        (b'{"model":"m","x":{' + b'"\\\\":1,' * (2 * MAX_TEXTS) + b'"b":1}}', None, "keys and texts"),
        (b'{"model":"m","x":["a\\"",' + b"1," * MAX_VALUES + b"1]}", None, "values"),
        (b'{"model":"m"' + b',"x":1' * MAX_FIELDS + b"}", None, "fields"),
        (b'{"model":"m","x":["\\ud800"]}', None, "surrogate"),
        (b'{"model":"m","\\udc00":1}', None, "surrogate"),
        (b'{"model":"\\ud83d"}', None, "surrogate"),
        (b"[]", None, "JSON object"),
        (b'"model"', None, "JSON object"),
        (b"null", None, "JSON object"),
        (b"{}", "model", "is missing"),
        (b'{"model":null}', "model", "non-empty string"),
        (b'{"model":""}', "model", "non-empty string"),
        (b'{"model":7}', "model", "non-empty string"),
        (b'{"model":["m"]}', "model", "non-empty string"),
        (b'{"model":"m","stream":"true"}', "stream", "true or false"),
        (b'{"model":"m","stream":1}', "stream", "true or false"),
        (b'{"model":"m","model":"m"}', "model", "given twice"),
        (b'{"model":"m","mod\\u0065l":"n"}', "model", "given twice"),
        (b'{"model":"m","Model":"n"}', "model", "should be written `model`"),
        (b'{"MODEL":"m"}', "model", "should be written `model`"),
        (b'{"model":"m","stream":true,"Stream":false}', "stream", "should be written"),
        (b'{"model":"m","stream_options":{"include_usage":true}}', "stream_options", "only allowed with"),
        (b'{"model":"m","stream":true,"stream_options":[]}', "stream_options", "an object"),
        (b'{"model":"m","stream":true,"stream_options":{"include_usage":"yes"}}', "stream_options", "true or false"),
    ],
    ids=lambda value: repr(value)[:36],
)
def test_refused_bodies_name_the_field(body: bytes, param: str | None, text: str) -> None:
    with pytest.raises(InvalidBody, match=text) as caught:
        chat(body)
    assert caught.value.param == param


def test_whole_surrogate_pairs_and_escaped_backslashes_pass() -> None:
    assert chat(b'{"model":"m","x":"\\ud83d\\ude00 \\\\ud800"}').model == "m"


def test_envelope_words_deeper_down_mean_nothing() -> None:
    assert chat(b'{"model":"m","x":{"model":1,"model":2,"Stream":"a"}}').model == "m"


@given(st.binary(max_size=200) | st.text(alphabet='{}[]":,\\u0dmodelstr NaE+-1', max_size=60).map(str.encode))
def test_no_bytes_get_past_it_as_anything_but_a_refusal(body: bytes) -> None:
    with contextlib.suppress(InvalidBody):
        assert chat(body).model


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=50)
@given(
    # Hypothesis tries the words of the source as well.
    st.dictionaries(st.text(max_size=8).filter(lambda key: key.casefold() not in _ENVELOPE), JSON)
)
def test_every_json_object_with_a_model_passes(fields: dict[str, Any]) -> None:
    body = json.dumps({"model": "m", **fields}, ensure_ascii=False)
    assert chat(body.encode()).model == "m"


@pytest.mark.parametrize(
    "content_type",
    [b"application/json", b"Application/JSON", b"application/json; charset=utf-8", b'application/json;charset="UTF-8"'],
    ids=repr,
)
def test_json_in_utf8_is_accepted(content_type: bytes) -> None:
    check_headers({b"content-type": content_type}, 10)


@pytest.mark.parametrize(
    ("content_type", "encoding"),
    [
        (b"", b""),
        (b"text/plain", b""),
        (b"text/plain; application/json", b""),
        (b"application/x-www-form-urlencoded", b""),
        (b"multipart/form-data", b""),
        (b"application/json; charset=latin-1", b""),
        (b"application/json", b"gzip"),
    ],
    ids=repr,
)
def test_what_a_browser_sends_without_asking_is_refused(content_type: bytes, encoding: bytes) -> None:
    with pytest.raises(UnsupportedMedia):
        check_headers({b"content-type": content_type, b"content-encoding": encoding}, 10)


@pytest.mark.parametrize("length", [b"11", b"9" * 19, b"9" * 5000])
def test_announced_length_is_enough_for_a_refusal(length: bytes) -> None:
    with pytest.raises(BodyTooLarge):
        check_headers({b"content-type": b"application/json", b"content-length": length}, 10)


@pytest.mark.parametrize(
    ("fields", "features"),
    [
        ({}, set()),
        ({"tools": [], "logprobs": False, "response_format": None}, set()),
        ({"response_format": {"type": "text"}}, set()),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, {"tools"}),
        ({"logprobs": True, "top_logprobs": 2}, {"logprobs"}),
        ({"logprobs": 0}, {"logprobs"}),
        ({"response_format": {"type": "json_object"}}, {"structured_output"}),
        ({"structured_outputs": {"regex": "a"}, "tools": [1]}, {"structured_output", "guided_decoding", "tools"}),
    ],
    ids=str,
)
def test_features_that_not_every_engine_has_are_seen(fields: dict[str, Any], features: set[str]) -> None:
    assert chat(json.dumps({"model": "m", **fields}).encode()).features == features


@pytest.mark.parametrize(
    ("field", "value", "instead"),
    [
        ("guided_json", {}, '`response_format` of type json_schema, or `structured_outputs`: {"json": …}'),
        ("guided_regex", "a+", '`structured_outputs`: {"regex": …}'),
        ("guided_choice", ["a", "b"], '`structured_outputs`: {"choice": […]}'),
        ("guided_grammar", "root ::= x", '`structured_outputs`: {"grammar": …}'),
        ("guided_whitespace_pattern", "", '`structured_outputs`: {"whitespace_pattern": …}'),
        ("guided_decoding_backend", "auto", "nothing instead"),
    ],
)
def test_what_vllm_would_ignore_is_refused_and_its_successor_named(field: str, value: Any, instead: str) -> None:
    with pytest.raises(InvalidBody) as caught:
        chat(json.dumps({"model": "m", field: value}).encode())
    assert caught.value.param == field
    assert f"`{field}` is ignored by vLLM since 0.12; say {instead}" in str(caught.value)
    assert chat(json.dumps({"model": "m", field: None}).encode()).features == frozenset()
