"""Trains the byte-level BPE tokenizer so that llama.cpp's `gpt-2` pre-tokenizer splits text the same way."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable
from itertools import islice

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from backends.gguf.demo.chat import END, START, TEXT_END, TOOL_CALL, TOOL_CALL_END, TOOL_RESPONSE, TOOL_RESPONSE_END

CONTROL_TOKENS = (TEXT_END, START, END)
VISIBLE_TOKENS = (TOOL_CALL, TOOL_CALL_END, TOOL_RESPONSE, TOOL_RESPONSE_END)
_SPACE = "Ġ"
# GPT-2's pattern, but a space is its own piece and so is each digit: no merge then crosses either.
_PIECES = r" |'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+|\s"


def train_tokenizer(texts: list[str], vocabulary: int, spaced_words: int, in_pieces: Collection[str]) -> Tokenizer:
    """Learns merges inside words first, then joins a space to the `spaced_words` most frequent whole tokens.

    So a word that follows a space is cut as it is without one, which makes copying a value from a
    sentence into JSON the same tokens again; digits stay single, which makes adding learnable. Words that are to stay
    `in_pieces` have no token of their own, however frequent they are.
    """
    base = Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner = vocabulary - spaced_words - len(CONTROL_TOKENS) - len(VISIBLE_TOKENS)
    trainer = trainers.BpeTrainer(
        vocab_size=inner, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    base.train_from_iterator(texts, trainer)
    model = json.loads(base.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"] if "".join(pair) not in in_pieces]
    spaced = (token for token in _after_space(base, texts, spaced_words + len(in_pieces)) if token not in in_pieces)
    merges += [(_SPACE, token) for token in islice(spaced, spaced_words)]
    vocab: dict[str, int] = dict(model["vocab"])
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    tokenizer = assemble(vocab, merges)
    if tokenizer.get_vocab_size() != vocabulary:
        raise ValueError(f"only {tokenizer.get_vocab_size()} tokens, {vocabulary} wanted: take fewer spaced words")
    return tokenizer


def _after_space(base: Tokenizer, texts: Iterable[str], count: int) -> list[str]:
    """The tokens that most often are a whole word, or the quotes and brackets, behind a space."""
    seen: Counter[str] = Counter()
    for text in texts:
        for piece in re.findall(r" ([^\W\d_]+|[^\w\s]+)", text):
            tokens = base.encode(piece).tokens
            if len(tokens) == 1 and (piece in {"a", "I"} or len(piece) > 1 or not piece.isalnum()):
                seen[tokens[0]] += 1
    return [token for token, _ in seen.most_common(count)]


def assemble(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """The finished tokenizer with GPT-2's own pre-tokenizer and the chat's markers."""
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in VISIBLE_TOKENS])
    return tokenizer
