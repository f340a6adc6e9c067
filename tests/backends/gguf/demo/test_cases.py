"""The evaluation: its cases are fixed and disjoint from training, and its scoring is exact."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from backends.gguf.demo.cases import HELD_OUT, Call, Case, all_cases, ask, is_right, parse_call
from backends.gguf.demo.evaluate import report
from backends.gguf.demo.tool_corpus import known_names
from backends.gguf.demo.words import REQUESTS, is_held_out

CALL = Call("get_weather", {"city": "Paris", "days": 3})
RAW = '<tool_call>\n{"name": "get_weather", "arguments": {"days": 3, "city": "Paris"}}\n</tool_call>'
PARSED = {"function": {"name": "get_weather", "arguments": '{"city": "Paris", "days": 3}'}}


def test_cases_are_the_same_each_time() -> None:
    assert all_cases() == all_cases()


def test_every_category_has_its_share() -> None:
    count = Counter(case.category for case in all_cases())
    assert count["addition"] == 400
    assert count["tool call, generated"] >= 100
    assert min(count.values()) >= 20


def test_generated_tools_are_held_out() -> None:
    for case in all_cases():
        if case.category == "tool call, generated":
            assert isinstance(case.expected, Call)
            assert is_held_out(case.expected.name)
            assert all(is_held_out(name) for name in case.expected.arguments)
            assert all(is_held_out(str(value)) for value in case.expected.arguments.values())


def test_tools_written_by_hand_are_not_those_of_training() -> None:
    assert not {entry["tool"]["function"]["name"] for entry in HELD_OUT["tools"]} & set(known_names())


def test_unrelated_questions_are_not_those_of_training() -> None:
    assert not set(HELD_OUT["unrelated"]) & set(REQUESTS)


@pytest.mark.parametrize(
    ("message", "right"),
    [
        pytest.param({"content": RAW}, True, id="raw text, other order"),
        pytest.param({"content": None, "tool_calls": [PARSED]}, True, id="parsed by the server"),
        pytest.param({"content": None, "tool_calls": [PARSED, PARSED]}, False, id="two calls"),
        pytest.param({"content": RAW.replace("3", '"3"')}, False, id="wrong type"),
        pytest.param({"content": RAW.replace("weather", "time")}, False, id="wrong name"),
        pytest.param({"content": RAW.replace("}}", "}")}, False, id="broken JSON"),
        pytest.param({"content": "get_weather"}, False, id="no call"),
    ],
)
def test_call_is_right_only_when_name_and_arguments_are_equal(message: dict[str, Any], right: bool) -> None:
    assert is_right(Case("tool", ask("?"), CALL), message) is right


@pytest.mark.parametrize(
    ("message", "right"),
    [
        pytest.param({"content": " Hello. "}, True, id="surrounding space"),
        pytest.param({"content": "hello."}, False, id="other case"),
        pytest.param({"content": "Hello.", "tool_calls": [PARSED]}, False, id="with a call"),
        pytest.param({"content": None}, False, id="nothing"),
    ],
)
def test_text_is_right_only_when_it_is_the_answer(message: dict[str, Any], right: bool) -> None:
    assert is_right(Case("text", ask("?"), "Hello."), message) is right


def test_call_without_arguments_object_is_no_call() -> None:
    assert parse_call({"content": '<tool_call>\n{"name": "x"}\n</tool_call>'}) is None


def test_report_counts_by_category() -> None:
    cases = [Case("a", ask("1"), "x"), Case("a", ask("2"), "y"), Case("b", ask("3"), CALL)]
    lines = report(cases, [{"content": "x"}, {"content": "z"}, {"content": RAW}], failures_shown=1).splitlines()
    assert lines[0] == "[a] '2'"
    assert lines[-2].split() == ["a", "1", "/", "2", "50.0", "%"]
    assert lines[-1].split() == ["b", "1", "/", "1", "100.0", "%"]


def test_cases_are_json() -> None:
    for case in all_cases():
        json.dumps([case.messages, case.tools])
