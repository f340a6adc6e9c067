"""Word lists and the source of random words, names and values that the generated text draws from.

Every string value falls by its checksum into the training part or the held-out part, so that an
evaluation never shows a tool name, argument name or value that training has shown.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LISTS: dict[str, Any] = json.loads((Path(__file__).parent / "words.json").read_text(encoding="utf-8"))

VERBS: list[str] = _LISTS["verbs"].split()
NOUNS: list[str] = _LISTS["nouns"].split()
ADJECTIVES: list[str] = _LISTS["adjectives"].split()
NAMES: list[str] = _LISTS["names"].split()
CITIES: list[str] = _LISTS["cities"].split(",")
TEXT_ARGUMENTS: list[str] = _LISTS["text_arguments"].split()
NUMBER_ARGUMENTS: list[str] = _LISTS["number_arguments"].split()
OPTIONS: list[list[str]] = [group.split("/") for group in _LISTS["options"].split()]
REQUESTS: list[str] = _LISTS["requests"]

_ONSETS = "b c d f g h j k l m n p qu r s t v w x y z bl br ch cl cr dr fl fr gl gr kl kr pl pr sh sk sl sp st th tr zw"
_VOWELS = "a e i o u a e i o ai ea ee oo ou y"
_CODAS = "b ck d ff g k l ll m n nd ng nk p r rd rk rm rt s sh ss st t th x z"
_TRAINING_SHARE = 8
_LISTED = {*VERBS, *NOUNS, *ADJECTIVES, *NAMES, *CITIES, *TEXT_ARGUMENTS, *NUMBER_ARGUMENTS}


def is_held_out(text: str) -> bool:
    """True for about one string in eight: those that only the evaluation may use."""
    return zlib.crc32(text.lower().encode()) % _TRAINING_SHARE == 0


# The listed words of the training part: the tokenizer learns most of them whole, which makes copying one a single step.
# One of the other part would have a token that training never shows where the evaluation wants it; in pieces it is
# copied as any unknown word is.
LEXICON: list[str] = sorted(word for word in _LISTED if not is_held_out(word))
IN_PIECES = _LISTED - {*LEXICON}


@dataclass
class Source:
    """Random values from one side of the split; `held_out` says which side."""

    rng: random.Random
    held_out: bool = False

    def pick(self, make: Callable[[], str]) -> str:
        """The first value of `make` that lies on our side of the split."""
        for _ in range(1000):
            value = make()
            if is_held_out(value) == self.held_out:
                return value
        raise ValueError("no value on this side of the split")

    def pseudo(self) -> str:
        """A word that exists in no list, such as `zorblax`."""
        rng = self.rng
        word = ""
        for _ in range(rng.choice((1, 2, 2, 2, 3))):
            word += rng.choice(_ONSETS.split()) + rng.choice(_VOWELS.split())
        return word + (rng.choice(_CODAS.split()) if rng.random() < 0.6 else "")

    def letters(self) -> str:
        return "".join(self.rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(self.rng.randint(3, 6)))

    def plain(self) -> str:
        """A word of any kind, split or not."""
        chance = self.rng.random()
        if chance < 0.8:
            return self.rng.choice(self.rng.choice((NOUNS, VERBS, ADJECTIVES)))
        return self.pseudo() if chance < 0.96 else self.letters()

    def noun(self) -> str:
        return self.rng.choice(NOUNS)

    def verb(self) -> str:
        return self.rng.choice(VERBS)

    def adjective(self) -> str:
        return self.rng.choice(ADJECTIVES)

    def word(self) -> str:
        return self.pick(self.plain)

    def name(self) -> str:
        def make() -> str:
            return self.rng.choice(NAMES) if self.rng.random() < 0.6 else self.pseudo().capitalize()

        return self.pick(make)

    def full_name(self) -> str:
        return self.pick(lambda: f"{self.name()} {self.name()}")

    def city(self) -> str:
        def make() -> str:
            if self.rng.random() < 0.7:
                return self.rng.choice(CITIES)
            prefix = self.rng.choice(("New ", "San ", "Port ", "", "", "", "", "", ""))
            return prefix + self.pseudo().capitalize()

        return self.pick(make)

    def phrase(self) -> str:
        return self.pick(lambda: " ".join(self.plain() for _ in range(self.rng.choice((2, 2, 3)))))

    def code(self) -> str:
        def make() -> str:
            rng = self.rng
            letters = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(rng.randint(1, 3)))
            digits = "".join(rng.choice("0123456789") for _ in range(rng.randint(2, 5)))
            return letters + rng.choice(("", "-")) + digits

        return self.pick(make)

    def integer(self) -> str:
        def make() -> str:
            return str(self.rng.randrange(10 ** self.rng.randint(1, 4)))

        return self.pick(make)

    def date(self) -> str:
        rng = self.rng
        return self.pick(lambda: f"20{rng.randint(20, 35)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}")

    def time(self) -> str:
        return self.pick(lambda: f"{self.rng.randint(0, 23):02}:{self.rng.randint(0, 59):02}")

    def email(self) -> str:
        return self.pick(lambda: f"{self.plain()}@{self.plain()}.{self.rng.choice(('com', 'org', 'net', 'io'))}")

    def value(self, kind: str) -> str:
        """A value of a kind named by a method of this class, such as `city`."""
        made: str = getattr(self, kind)()
        return made
