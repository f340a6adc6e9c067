"""The text of an API key: random, recognisable when it leaks, checkable for typing mistakes. Only its hash is kept.

`up-`, 33 random characters (196 bits), 6 characters of checksum; secret scanners find it by `up-[0-9A-Za-z]{39}`.
Neighbours: keysfile.py (where hashes are kept), auth.py (who asks).
"""

from __future__ import annotations

import hashlib
import secrets
import zlib

PREFIX = "up-"
RANDOM_CHARACTERS = 33
CHECK_CHARACTERS = 6
KEY_CHARACTERS = len(PREFIX) + RANDOM_CHARACTERS + CHECK_CHARACTERS

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def new_key() -> str:
    """A fresh key from the system's random source."""
    body = PREFIX + "".join(secrets.choice(_DIGITS) for _ in range(RANDOM_CHARACTERS))
    return body + _checksum(body)


def hash_of(key: str) -> str:
    """What is kept of a key: `sha256:` and 64 hexadecimal digits.

    A plain hash and no slow one: nobody can try out 196 random bits, and every request computes it.
    """
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def is_intact(key: str) -> bool:
    """Whether the text is a key of ours as it was printed: prefix, length and checksum. No word on its validity."""
    body, check = key[:-CHECK_CHARACTERS], key[-CHECK_CHARACTERS:]
    return len(key) == KEY_CHARACTERS and key.startswith(PREFIX) and check == _checksum(body)


def looks_like_token(key: bytes) -> bool:
    """Whether `key` is shaped like a JSON Web Token, as none of ours is."""
    return key.startswith(b"eyJ") and key.count(b".") == 2


def _checksum(body: str) -> str:
    """CRC-32 in base 62, as GitHub's tokens have it: finds every single changed or swapped character."""
    number = zlib.crc32(body.encode())
    digits = ""
    for _ in range(CHECK_CHARACTERS):
        number, digit = divmod(number, len(_DIGITS))
        digits = _DIGITS[digit] + digits
    return digits
