"""Versions of engines that are known to have a fault, and where that is said. Data; nothing is refused for it.

Only faults that somebody has published with their versions, and of those the ones that matter to whoever serves text by
it: what requests and model files may do, and keys. Neighbour: release.py (asks an engine for its version).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_SHOWN = 3


class Release(NamedTuple):
    """What an engine says that it is: the project's name, and a version as that project writes it."""

    engine: str
    version: str

    def __str__(self) -> str:
        return f"{self.engine} {self.version}"


class Advisory(NamedTuple):
    """A fault of the versions from `since` (empty: of all) to the last one before `before`; `source` is its number
    where such are published, or the project's issue."""

    since: str
    before: str
    source: str
    what: str


# The worst first: a line in the log has room for three.
ADVISORIES: Mapping[str, Sequence[Advisory]] = {
    # https://github.com/vllm-project/vllm/security/advisories, https://osv.dev
    "vLLM": (
        Advisory("0.8.3", "0.14.1", "CVE-2026-22778", "a malformed picture or video can run code"),
        Advisory("0.3.0", "0.22.0", "CVE-2026-48746", "a forged Host header passes its API key by"),
        Advisory("0.10.1", "0.18.0", "CVE-2026-27893", "some models run code of their own though that is off"),
        Advisory("0.16.0", "0.21.0", "GHSA-v97p-wpxp-px84", "with pipeline_parallel, tokens of other requests get in"),
        Advisory("0.21.0", "0.28.0", "GHSA-fpch-3xrf-7q96", "a thinking budget can end others' reasoning"),
        Advisory("0.5.5", "0.23.1", "CVE-2026-53923", "a GGUF file can show what is in the GPU's memory"),
        Advisory("", "0.30.0", "CVE-2026-105757", "a bad structured output ends the engine"),
        Advisory("0.1.0", "0.19.0", "CVE-2026-34756", "a huge `n` takes all memory"),
        Advisory("0.19.0", "0.26.0", "CVE-2026-73559", "a long list of prompts takes all memory"),
        Advisory("0.19.0", "0.32.0", "PYSEC-2026-4344", "a request's chat template may run without end"),
        Advisory("0.16.0", "0.32.0", "PYSEC-2026-4349", "a chat template gets in by chat_template_kwargs"),
        Advisory("0.6.1", "0.20.0", "CVE-2026-44222", "the names of special tokens in a prompt end the engine"),
        Advisory("0.18.0", "0.20.0", "CVE-2026-44223", "with speculative decoding, a penalty ends the engine"),
        Advisory("0.12.0", "0.24.0", "PYSEC-2026-2303", "prompt embeddings end the engine"),
        Advisory("", "0.11.0", "CVE-2025-59425", "its API key can be guessed by the time that a wrong one takes"),
        Advisory("", "0.10.1.1", "CVE-2025-48956", "long headers take all memory"),
    ),
    "Ollama": (
        Advisory("", "0.17.1", "CVE-2026-7482", "whoever may create and push models reads the server's memory"),
        Advisory("", "0.14.3", "CVE-2025-51471", "a registry that it pulls from can steal its token"),
        Advisory("", "0.12.6", "ollama#4967", "a prompt that does not fit is cut in silence"),
    ),
    # https://www.cve.org; builds, as llama-server counts them.
    "llama.cpp": (
        Advisory("b8227", "b11393", "CVE-2026-107183", "a `chat_parser` in a request writes into freed memory"),
        # Fixed on 2026-04-23 (ggml-org/llama.cpp#22267); of the builds since, b8929 is the first of known date.
        Advisory("", "b8929", "CVE-2026-21869", "a negative `n_discard` in a request writes past a buffer"),
        # Found in every build up to these two; none that fixes them was named.
        Advisory("b7492", "b9061", "CVE-2026-43631", "with --sleep-idle-seconds, requests can run code"),
        Advisory("b4882", "b9059", "CVE-2026-43629", "a file in --slot-save-path can run code"),
        Advisory("", "b8146", "CVE-2026-27940", "a GGUF file can write past a buffer"),
        Advisory("", "b5721", "CVE-2025-52566", "a long text writes past the tokenizer's buffer"),
        Advisory("", "b5662", "CVE-2025-49847", "a GGUF file's vocabulary writes past a buffer"),
    ),
}


def faults(release: Release) -> tuple[Advisory, ...]:
    """What is known of this version, the worst first; nothing of engines and versions that cannot be told."""
    number = _number(release.version)
    if not number:
        return ()
    return tuple(
        each for each in ADVISORIES.get(release.engine, ()) if _number(each.since) <= number < _number(each.before)
    )


def sound_version(engine: str) -> str:
    """The first version of `engine` from which on nothing is known."""
    return max((each.before for each in ADVISORIES[engine]), key=_number)


def warning(release: Release) -> str:
    """The faults of `release` in one line; empty where none is known."""
    found = faults(release)
    if not found:
        return ""
    named = "; ".join(f"{each.what} ({each.source})" for each in found[:_SHOWN])
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{release} has known faults: {named}{more}. From {sound_version(release.engine)} on none is known here"


def _number(version: str) -> tuple[int, ...]:
    """The release in it: "0.23.1rc0+cu130" is (0, 23, 1), "b8929-bd4bd3c" is (8929,), nonsense nothing."""
    found = re.match(r"[vb]?(\d{1,9}(?:\.\d{1,9}){0,5})", version)
    return tuple(map(int, found[1].split("."))) if found else ()
