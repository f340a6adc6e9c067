"""Fields that cost without bound are refused by name, just above what is let through."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backends.base import Operation
from gateway import caps
from gateway.errors import InvalidBody
from gateway.intake import decode


def chat(**fields: Any) -> None:
    decode(json.dumps({"model": "m", **fields}).encode(), Operation.CHAT, "r1")


def nested(levels: int) -> Any:
    value: Any = 1
    for number in range(levels):
        value = [value] if number % 2 else {"a": value}
    return value


LONG = "x" * (caps.MAX_GRAMMAR_CHARACTERS + 1)
# (field, what still passes, what does not, what the refusal says)
BOUNDS: list[tuple[str, Any, Any, str]] = [
    ("n", 128, 129, "at most 128"),
    ("n", -1, 10**9, "at most 128"),
    ("best_of", 128, 2**63, "at most 128"),
    ("n_cmpl", 128, 129, "at most 128"),
    ("max_tokens", 0, -1, "not be negative"),
    ("max_completion_tokens", 2**40, -(2**63), "not be negative"),
    ("n_predict", 5, -2, "not be negative"),
    ("prompt", ["x"] * 1024, ["x"] * 1025, "1024 prompts"),
    ("prompt", [7] * 5000, [[7]] * 1025, "1024 prompts"),
    ("chat_template", None, "{{ 7 * 7 }}", "not passed on"),
    ("chat_template_kwargs", {"enable_thinking": False}, {"a": 1, "chat_template": "{{ 7 }}"}, "not hold `chat_temp"),
    ("chat_parser", None, "x", "not passed on"),
    ("id_slot", None, 0, "not passed on"),
    ("priority", None, -(10**6), "not passed on"),
    ("request_id", None, "x", "not passed on"),
    ("n_probs", 20, 200_000, "from 0 to 20"),
    ("kv_transfer_params", None, {}, "not passed on"),
    ("mm_processor_kwargs", None, {}, "not passed on"),
    ("n_discard", None, -1, "not passed on"),
    ("prompt_embeds", None, "AAAA", "not passed on"),
    ("logprobs", True, 21, "from 0 to 20"),
    ("logprobs", 20, -1, "from 0 to 20"),
    ("top_logprobs", 0, 10**9, "from 0 to 20"),
    ("prompt_logprobs", 20, -1, "from 0 to 20"),
    ("stop", "x" * 1024, "x" * 1025, "1024 characters"),
    ("stop", ["x"] * 64, ["x"] * 65, "64 entries"),
    ("stop", ["x" * 1024], ["a", "x" * 1025], "1024 characters"),
    ("logit_bias", {str(n): 1 for n in range(1024)}, {str(n): 1 for n in range(1025)}, "1024 tokens"),
    ("allowed_token_ids", list(range(1024)), list(range(1025)), "1024 tokens"),
    ("bad_words", ["x"] * 1024, ["x"] * 1025, "1024 tokens"),
    ("grammar", LONG[1:], LONG, "65536 characters"),
    ("response_format", {"type": "json_schema"}, {"type": "json_schema", "json_schema": {LONG: 1}}, "65536 char"),
    ("structured_outputs", {"json": {"a": 1}}, {"json": {str(n): n for n in range(20_000)}}, "65536 characters"),
    ("tools", [{"description": LONG}] * 10, [{"description": LONG}] * 16, "1048576 characters"),
    ("tools", [1] * 1024, [1] * 1025, "1024 entries"),
    ("anything", nested(128), nested(129), "nested too deeply"),
]


@pytest.mark.parametrize(("field", "good", "bad", "told"), BOUNDS, ids=[f"{b[0]} {b[3]}" for b in BOUNDS])
def test_bounds_hold_to_the_unit_and_name_the_field(field: str, good: Any, bad: Any, told: str) -> None:
    chat(**{field: good})
    chat(**{field: None})
    with pytest.raises(InvalidBody, match=told) as caught:
        chat(**{field: bad})
    assert caught.value.param == field
    assert len(caught.value.message) < 120


def test_long_conversations_are_not_deep() -> None:
    chat(messages=[{"role": "user", "content": [{"type": "text", "text": "{[" * 9}]}] * 500)


def test_capped_fields_cannot_be_written_otherwise() -> None:
    with pytest.raises(InvalidBody, match="should be written `best_of`"):
        chat(Best_Of=10**9)
    with pytest.raises(InvalidBody, match="given twice"):
        decode(b'{"model":"m","n":1,"n":999}', Operation.CHAT, "r1")
