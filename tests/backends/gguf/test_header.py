"""Files written by the gguf package, by hand, and by nobody who means well."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.gguf.demo import DEMO_MODEL_PATH
from backends.gguf.header import TENSOR_TYPES, GgufError, read_header
from backends.gguf.shape import shape_of
from tests.benchmarks.random_model import Shape, write_random_model


def test_table_of_types_is_the_gguf_packages() -> None:
    from gguf.constants import GGML_QUANT_SIZES  # noqa: PLC0415

    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
    del theirs[9]  # Q8_1, which no file has: the package is behind llama.cpp there
    assert {number: TENSOR_TYPES[number] for number in theirs} == theirs
    assert len(TENSOR_TYPES) >= len(GGMLQuantizationType)


def test_demo_model_reads_as_the_gguf_package_reads_it() -> None:
    ours, theirs = read_header(DEMO_MODEL_PATH), GGUFReader(DEMO_MODEL_PATH)
    assert ours.architecture == "llama"
    assert [(t.name, list(t.shape), t.type_name, t.n_bytes) for t in ours.tensors] == [
        (t.name, t.shape.tolist(), t.tensor_type.name, int(t.n_bytes)) for t in theirs.tensors
    ]
    assert ours.metadata["llama.attention.head_count_kv"] == 3
    assert ours.lengths["tokenizer.ggml.tokens"] == 2048
    assert "tokenizer.chat_template" not in ours.metadata


def _written(path: Path, fill: Callable[[GGUFWriter], None]) -> Path:
    writer = GGUFWriter(path, "odd")
    fill(writer)
    writer.add_tensor("a", np.zeros((3, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_every_kind_of_value_is_read_or_passed_over(tmp_path: Path) -> None:
    def fill(writer: GGUFWriter) -> None:
        writer.add_int8("i8", -3)
        writer.add_uint64("u64", 2**63)
        writer.add_float64("f64", 0.5)
        writer.add_bool("yes", True)
        writer.add_string("long", "x" * 100_000)
        writer.add_array("texts", ["a", "bb" * 90_000, ""] * 50)
        writer.add_array("short", [1, 2, 3])
        writer.add_array("flags", [True, False])
        writer.add_array("many", list(range(5000)))
        writer.add_string("last", "it is")

    header = read_header(_written(tmp_path / "odd.gguf", fill))
    del header.metadata["general.architecture"]
    expected = {"i8": -3, "u64": 2**63, "f64": 0.5, "yes": True, "short": (1, 2, 3), "flags": (True, False)}
    assert header.metadata == expected | {"last": "it is"}
    assert header.lengths == {"texts": 150, "short": 3, "flags": 2, "many": 5000}
    assert [(tensor.name, tensor.shape, tensor.n_bytes) for tensor in header.tensors] == [("a", (4, 3), 48)]


def test_a_download_that_broke_off_is_told(tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(DEMO_MODEL_PATH.read_bytes()[:-1000])
    with pytest.raises(
        GgufError, match=r"cut\.gguf is damaged or no GGUF file: it is cut short: [\d,]+ of [\d,]+ bytes"
    ):
        read_header(cut)


def _split(folder: Path, number: int, count: int) -> Path:
    def fill(writer: GGUFWriter) -> None:
        writer.add_uint16("split.count", count)

    return _written(folder / f"m-{number:05d}-of-{count:05d}.gguf", fill)


def test_parts_of_a_split_model_count_together(tmp_path: Path) -> None:
    first, second = _split(tmp_path, 1, 2), _split(tmp_path, 2, 2)
    assert sum(tensor.n_bytes for tensor in read_header(first).tensors) == 96
    with pytest.raises(GgufError, match="one of 2 parts; name the first one, which ends in -00001-of-00002"):
        read_header(second)
    second.unlink()
    with pytest.raises(GgufError, match=r"m-00002-of-00002\.gguf: No such file"):
        read_header(first)


def _text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _head(tensors: int = 0, entries: int = 1, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries)


HUGE = struct.pack("<Q", 2**62)
HOSTILE = {
    "empty": b"",
    "zip": b"PK\x03\x04" + bytes(60),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 1, 1),
    "version-1": _head(version=1),
    "a-trillion-entries": _head(entries=2**40),
    "a-trillion-tensors": _head(tensors=2**40, entries=0),
    "huge-name": _head() + HUGE,
    "huge-text": _head() + _text(b"k") + struct.pack("<I", 8) + HUGE,
    "huge-list": _head() + _text(b"k") + struct.pack("<II", 9, 0) + HUGE,
    "huge-list-of-texts": _head() + _text(b"k") + struct.pack("<II", 9, 8) + HUGE,
    "a-text-that-leads-out": _head() + _text(b"k") + struct.pack("<IIQ", 9, 8, 1) + HUGE,
    "lists-in-lists": _head() + _text(b"k") + struct.pack("<IIQ", 9, 9, 1),
    "unknown-value": _head() + _text(b"k") + struct.pack("<I", 99),
    "unknown-tensor": _head(1, 0) + _text(b"t") + struct.pack("<IIQ", 0, 999, 0),
    "five-dimensions": _head(1, 0) + _text(b"t") + struct.pack("<I", 5),
    "endless-tensor": _head(1, 0) + _text(b"t") + struct.pack("<IQQQQIQ", 4, *[2**63] * 4, 0, 0),
    "far-tensor": _head(1, 0) + _text(b"t") + struct.pack("<IQIQ", 1, 1, 0, 2**63),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_nonsense_is_refused_without_taking_memory(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(GgufError, match=r"bad\.gguf is damaged or no GGUF file"):
            read_header(file)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_a_folder_and_a_missing_file_are_told(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.gguf"):
        with pytest.raises(GgufError, match=path.name):
            read_header(path)


def test_a_large_header_of_zeros_ends_at_the_bound(tmp_path: Path) -> None:
    file = tmp_path / "sparse.gguf"
    with file.open("wb") as stream:
        stream.write(_head() + _text(b"k") + struct.pack("<IIQ", 9, 0, 2**33))
        stream.truncate(2**36)
    with pytest.raises(GgufError, match="its header is too long"):
        read_header(file)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("small") / "small.gguf"
    write_random_model(path, Shape(1, 32, 2, 1, 32, 300, 64))
    return path.read_bytes()


@settings(max_examples=300)
@given(data=st.data())
def test_whatever_is_broken_in_a_file_is_an_error_of_ours(
    data: st.DataObject, small: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    broken = bytearray(small)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, 700) | st.integers(0, len(small) - 1))
        broken[place] = data.draw(st.sampled_from([0, 1, 8, 9, 127, 255]))
    file = tmp_path_factory.getbasetemp() / "broken.gguf"
    file.write_bytes(broken[: data.draw(st.sampled_from([len(small), len(small) // 2, 400]))])
    try:
        shape = shape_of(read_header(file))
    except GgufError:
        return
    assert shape.weight_bytes <= len(small)
