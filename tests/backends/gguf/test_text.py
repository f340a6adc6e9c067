"""TextStream: UTF-8 is never cut, a stop string never leaks, whatever the token borders."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from backends.gguf.text import TextStream


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in pairwise(edges)]


def drain(stream: TextStream, pieces: list[bytes]) -> list[str]:
    sent = [stream.feed(piece) for piece in pieces]
    return [*sent, stream.flush()]


@given(st.text(), st.lists(st.integers(0, 10_000)))
def test_text_survives_any_token_borders(text: str, cuts: list[int]) -> None:
    assert (
        "".join(drain(TextStream(), split(text.encode("utf-8", "replace"), cuts)))
        == text.encode("utf-8", "replace").decode()
    )


@given(st.text(), st.lists(st.integers(0, 10_000)))
def test_no_piece_ends_inside_a_character(text: str, cuts: list[int]) -> None:
    data = text.encode("utf-8", "replace")
    stream = TextStream()
    for piece in split(data, cuts):
        assert "�" not in stream.feed(piece).replace("�", "" if "�" in text else "�") or "�" in text


@given(
    st.text("abc ", max_size=60),
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(0, 60)),
)
def test_text_ends_right_before_the_first_stop_string(text: str, stops: list[str], cuts: list[int]) -> None:
    stream = TextStream(stops)
    sent = "".join(drain(stream, split(text.encode(), cuts)))
    ends = [text.find(stop) for stop in stops if stop in text]
    if not ends:
        assert (sent, stream.stopped) == (text, None)
        return
    # Which of several stop strings is seen first depends on which is complete first; none of them may leak.
    assert text.startswith(sent)
    assert stream.stopped in stops
    assert text[len(sent) :].startswith(stream.stopped or "?")
    assert not any(stop in sent for stop in stops)


def test_a_stop_string_over_three_tokens_is_held_back_and_dropped() -> None:
    stream = TextStream(["<end>"])
    assert [stream.feed(piece) for piece in (b"hi <", b"en", b"d> more")] == ["hi ", "", ""]
    assert stream.stopped == "<end>"
    assert stream.flush() == ""


def test_an_almost_stop_string_is_released() -> None:
    stream = TextStream(["<end>"])
    assert [stream.feed(b"a <en"), stream.feed(b"try")] == ["a ", "<entry"]


def test_half_a_character_at_the_end_becomes_a_replacement_character() -> None:
    stream = TextStream()
    assert stream.feed("é".encode()[:1]) == ""
    assert stream.flush() == "\N{REPLACEMENT CHARACTER}"
