"""Measures the demo model through an OpenAI endpoint: `python -m backends.gguf.demo.evaluate --url http://.../v1`."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from backends.gguf.demo.cases import Call, Case, all_cases, is_right


def answer(client: httpx.Client, model: str, case: Case) -> dict[str, Any]:
    """The assistant's message of a greedy completion."""
    body: dict[str, Any] = {"model": model, "messages": case.messages, "temperature": 0, "max_tokens": 160}
    if case.tools:
        body["tools"] = case.tools
    response = client.post("chat/completions", json=body)
    response.raise_for_status()
    message: dict[str, Any] = response.json()["choices"][0]["message"]
    return message


def report(cases: list[Case], messages: list[dict[str, Any]], failures_shown: int) -> str:
    """Right answers per category and some of the wrong ones."""
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    lines: list[str] = []
    for case, message in zip(cases, messages, strict=True):
        total[case.category] += 1
        if is_right(case, message):
            right[case.category] += 1
        elif total[case.category] - right[case.category] <= failures_shown:
            lines.append(_failure(case, message))
    width = max(len(category) for category in total)
    for category, count in total.items():
        lines.append(f"{category:{width}}  {right[category]:4} / {count:4}  {100 * right[category] / count:5.1f} %")
    return "\n".join(lines)


def _failure(case: Case, message: dict[str, Any]) -> str:
    expected = case.expected
    if isinstance(expected, Call):
        wanted = json.dumps({"name": expected.name, "arguments": expected.arguments})
    else:
        wanted = expected
    got = json.dumps(message.get("tool_calls") or message.get("content"))
    return f"[{case.category}] {case.messages[-1]['content']!r}\n    wanted {wanted}\n    got    {got}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True, help="base URL of the server, with /v1")
    parser.add_argument("--model", help="default: the first that the server lists")
    parser.add_argument("--key", default="none", help="API key")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--show-failures", type=int, default=0, metavar="N", help="wrong answers shown per category")
    options = parser.parse_args()
    headers = {"Authorization": f"Bearer {options.key}"}
    cases = all_cases()
    with httpx.Client(base_url=options.url.rstrip("/") + "/", headers=headers, timeout=120) as client:
        model = options.model or client.get("models").raise_for_status().json()["data"][0]["id"]
        with ThreadPoolExecutor(options.concurrency) as pool:
            messages = list(pool.map(lambda case: answer(client, model, case), cases))
    print(report(cases, messages, options.show_failures))


if __name__ == "__main__":
    main()
