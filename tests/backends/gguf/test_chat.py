"""Chat templates are untrusted: what they may not do, and what they must be able to."""

from __future__ import annotations

import pytest

from backends.gguf import chat
from backends.gguf.chat import ChatTemplate, TemplateError, plain_messages

HELLO = [{"role": "user", "content": "hello"}]


def render(source: str) -> str:
    return ChatTemplate(source, bos="<s>", eos="</s>").render(HELLO, None)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ self.__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{{ 'x' * 99999999 }}",
        "{{ 2 ** 99999999 }}",
        "{{ '%99999999d' | format(1) }}",
        "{{ '%99999999d' % 1 }}",
        "{{ '{:99999999}'.format(1) }}",
        "{{ 'x'.ljust(99999999) }}",
        "{% for i in range(99999999) %}{% endfor %}",
        "{{ messages.clear() }}",
        "{{ raise_exception('no') }}",
        "{{ undefined.attribute }}",
    ],
)
def test_what_a_template_may_not_do(source: str) -> None:
    with pytest.raises(TemplateError):
        render(source)


def test_a_template_that_does_not_end_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "RENDER_SECONDS", 0.2)
    with pytest.raises(TemplateError, match=r"took over 0\.2 s"):
        render("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")


def test_what_templates_use_works() -> None:
    source = (
        "{{ bos_token }}{% for m in messages %}{% if loop.first %}{{ m | tojson }}{% break %}{% endif %}{% endfor %}"
    )
    assert render(source) == '<s>{"role": "user", "content": "hello"}'
    assert render("{{ '-' * 3 }}{{ strftime_now('%Y')[:2] }}{{ 7 % 4 }}") == "---203"
    assert render("{{ '<&>' | tojson }}") == '"<&>"'


def test_without_a_template_chatml_is_used() -> None:
    text = ChatTemplate(None, bos="", eos="").render(HELLO, None)
    assert text == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


def test_messages_reach_the_template_in_one_form() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    assert plain_messages([{"role": "developer", "content": parts}]) == [{"role": "system", "content": "ab"}]
    (message,) = plain_messages([{"role": "assistant", "content": None, "tool_calls": [call]}])
    assert message["content"] == ""
    assert message["tool_calls"][0]["function"]["arguments"] == {"x": 1}
