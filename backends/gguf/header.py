"""What a GGUF file says of itself before its weights: metadata and the table of tensors. Nothing else is read.

Files are untrusted. Every count and length is checked before anything is read or kept; long texts and lists (templates,
tokenizers) are passed over. Reads and no mapping: a mapped file that shrinks kills its reader. Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MAX_HEADER_BYTES = 256 * 1024 * 1024
MAX_TENSORS = 65_536
MAX_ENTRIES = 2048
# What is kept of an entry: names, and one number for each layer (llama.cpp takes 512 at most).
MAX_TEXT_BYTES = 256
MAX_LIST = 512
MAX_SPLITS = 1024

_CHUNK_BYTES = 1024 * 1024
_SPLIT_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

# ggml's number of a type -> its name, elements in a block, bytes of a block (ggml.h, gguf-py of the pinned llama.cpp).
TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}

Scalar = int | float | bool | str
Value = Scalar | tuple[int | float | bool, ...]


class GgufError(Exception):
    """The file cannot be a model: the message names it and says why."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of the table; `shape` as ggml has it, the fastest dimension first."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    n_bytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Metadata and tensors of a model, of all its files where it is split. `metadata` has no long texts and lists;
    `lengths` are those of all lists."""

    metadata: dict[str, Value]
    lengths: dict[str, int]
    tensors: tuple[Tensor, ...]

    @property
    def architecture(self) -> str:
        """Such as "llama": the first part of the names of the model's own keys."""
        found = self.metadata.get("general.architecture")
        return found if isinstance(found, str) else ""


def read_header(path: Path) -> GgufHeader:
    """The header of the model that begins at `path`. Raises GgufError, also for a file whose weights are cut short."""
    first = _read_file(path)
    metadata, tensors = first.metadata, first.tensors
    for other in _other_splits(path, metadata.get("split.count", 1)):
        tensors += _read_file(other).tensors
    return GgufHeader(metadata, first.lengths, tensors)


def _other_splits(path: Path, count: Value) -> Iterator[Path]:
    if not isinstance(count, int) or count <= 1:
        return
    found = _SPLIT_NAME.fullmatch(path.name)
    if found is None or int(found[2]) != 1 or int(found[3]) != count or count > MAX_SPLITS:
        raise GgufError(f"{path} is one of {count} parts; name the first one, which ends in -00001-of-{count:05d}.gguf")
    for number in range(2, count + 1):
        yield path.with_name(f"{found[1]}-{number:05d}-of-{count:05d}.gguf")


def _read_file(path: Path) -> GgufHeader:
    try:
        with path.open("rb") as file:
            return _Reader(file, path.stat().st_size).header()
    except OSError as error:
        raise GgufError(f"{path}: {error.strerror or error}") from error
    except (GgufError, struct.error) as error:
        raise GgufError(f"{path} is damaged or no GGUF file: {error}") from error


class _Reader:
    """A window that moves forward over the header."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self._limit = min(size, MAX_HEADER_BYTES)
        self._data = b""
        self._start = 0  # where the window begins in the file
        self._at = 0  # where the next byte to read is in the window

    def header(self) -> GgufHeader:
        if self._take(4) != b"GGUF":
            raise GgufError("it does not begin with GGUF")
        version = self._number("I")
        if version not in (2, 3):
            raise GgufError(f"version {version} is not known here (a big-endian file reads like that as well)")
        n_tensors, n_entries = self._count("table of tensors", MAX_TENSORS), self._count("metadata", MAX_ENTRIES)
        metadata: dict[str, Value] = {}
        lengths: dict[str, int] = {}
        for _ in range(n_entries):
            self._entry(metadata, lengths)
        infos = [self._tensor_info() for _ in range(n_tensors)]
        self._check_extent(infos, metadata.get("general.alignment", 32))
        return GgufHeader(metadata, lengths, tuple(tensor for tensor, _ in infos))

    def _entry(self, metadata: dict[str, Value], lengths: dict[str, int]) -> None:
        key, kind = self._text(), self._number("I")
        if kind == _ARRAY:
            element, count = self._number("I"), self._number("Q")
            lengths[key] = count
            listed = self._list(element, count)
            if listed is not None:
                metadata[key] = listed
        elif kind == _STRING:
            length = self._number("Q")
            if length > MAX_TEXT_BYTES:
                self._skip(length)
            else:
                metadata[key] = self._take(length).decode("utf-8", "replace")
        else:
            metadata[key] = self._number(_format(kind))

    def _list(self, element: int, count: int) -> tuple[int | float | bool, ...] | None:
        """The numbers of a list that is short enough to keep; everything else is passed over."""
        if element == _STRING:
            self._skip_texts(count)
            return None
        form = _format(element)
        if count > MAX_LIST:
            self._skip(count * struct.calcsize(form))
            return None
        return struct.unpack(f"<{count}{form}", self._take(count * struct.calcsize(form)))

    def _tensor_info(self) -> tuple[Tensor, int]:
        """A tensor and where it begins behind the header."""
        name, n_dimensions = self._text(), self._number("I")
        if n_dimensions > 4:
            raise GgufError(f"tensor {name!r} has {n_dimensions} dimensions")
        shape = tuple(int(self._number("Q")) for _ in range(n_dimensions))
        kind = self._number("I")
        if kind not in TENSOR_TYPES:
            raise GgufError(f"tensor {name!r} is of type {kind}, which is not known here")
        type_name, block, block_bytes = TENSOR_TYPES[kind]
        elements = 1
        for length in shape:
            elements *= length
        return Tensor(name, shape, type_name, -(-elements // block) * block_bytes), int(self._number("Q"))

    def _check_extent(self, infos: list[tuple[Tensor, int]], alignment: Value) -> None:
        """Raises GgufError where the weights go on behind the end of the file: a download that broke off."""
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
            raise GgufError(f"its alignment is {alignment}")
        here = self._start + self._at
        begin = here + -here % alignment
        end = max((begin + offset + tensor.n_bytes for tensor, offset in infos), default=begin)
        if end > self._size and infos:
            raise GgufError(f"it is cut short: {self._size:,} of {end:,} bytes are there")

    def _count(self, what: str, most: int) -> int:
        count = int(self._number("Q"))
        if count > most:
            raise GgufError(f"its {what} has {count:,} entries")
        return count

    def _number(self, form: str) -> int:
        # Floats and booleans come this way as well; only integers are computed with.
        number: int = struct.unpack("<" + form, self._take(struct.calcsize(form)))[0]
        return number

    def _text(self) -> str:
        """A name. Raises GgufError where it is too long for one."""
        length = self._number("Q")
        if length > MAX_TEXT_BYTES:
            raise GgufError(f"it has a name of {length:,} bytes")
        return self._take(length).decode("utf-8", "replace")

    def _skip_texts(self, count: int) -> None:
        if count > (self._limit - self._start - self._at) // 8:
            raise GgufError(f"a list of {count:,} texts goes on behind the end of its header")
        done = 0
        while done < count:
            self._fill(8)
            at, last = self._at, len(self._data) - 8
            # Two hundred thousand texts are usual: one look at a time, without a call for each.
            while done < count and at <= last:
                at += 8 + struct.unpack_from("<Q", self._data, at)[0]
                done += 1
            self._skip(at - self._at)

    def _take(self, n_bytes: int) -> bytes:
        self._fill(n_bytes)
        self._at += n_bytes
        return self._data[self._at - n_bytes : self._at]

    def _skip(self, n_bytes: int) -> None:
        place = self._start + self._at + n_bytes
        if place > self._limit:
            raise GgufError("its header goes on behind its end" if place > self._size else "its header is too long")
        if place <= self._start + len(self._data):
            self._at += n_bytes
        else:
            self._file.seek(place)
            self._start, self._at, self._data = place, 0, b""

    def _fill(self, n_bytes: int) -> None:
        """At least so many bytes of the window are still to be read. Raises GgufError at the end of the file."""
        missing = n_bytes - (len(self._data) - self._at)
        if missing <= 0:
            return
        if self._start + len(self._data) + missing > self._limit:
            raise GgufError("its header goes on behind its end")
        rest = self._data[self._at :]
        self._start += self._at
        self._data, self._at = rest + self._file.read(max(missing, _CHUNK_BYTES)), 0
        if len(self._data) < n_bytes:
            raise GgufError("it became shorter while it was read")


def _format(kind: int) -> str:
    if kind not in _NUMBERS:
        raise GgufError(f"it has a value of type {kind}, which is not known here")
    return _NUMBERS[kind]
