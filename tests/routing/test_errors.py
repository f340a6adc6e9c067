from __future__ import annotations

import pytest

from routing.errors import ModelNotFound, RoutingError


@pytest.mark.parametrize(
    ("model", "known", "said"),
    [
        pytest.param("gpt-4", ("demo", "small"), "'gpt-4' does not exist. Known: demo, small.", id="lists-few-names"),
        pytest.param("dmeo", ("demo", "small"), "Did you mean 'demo'?", id="offers-the-nearest"),
        pytest.param("x", tuple(f"m{i}" for i in range(500)), "lists the 500 names", id="does-not-list-many"),
    ],
)
def test_unknown_model_says_what_to_use_instead(model: str, known: tuple[str, ...], said: str) -> None:
    error = ModelNotFound(model, known)
    assert said in error.message
    assert (error.model, error.known, error.retryable) == (model, known, False)


def test_message_stays_one_short_line_whatever_the_client_sent() -> None:
    error = ModelNotFound("\r\nset-cookie: a=b\x1b[31m\u202e" + "x" * 100_000, ("demo",))
    assert len(error.message) < 400
    assert error.message.isascii()
    assert error.message.isprintable()


def test_errors_belong_to_one_tree() -> None:
    assert issubclass(ModelNotFound, RoutingError)
