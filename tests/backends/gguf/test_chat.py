"""Chat templates are untrusted: what they may not do, and what they must be able to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from backends.gguf import chat
from backends.gguf.chat import ChatTemplate, TemplateError, plain_messages

HELLO = [{"role": "user", "content": "hello"}]
CHATML_HELLO = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
# Half a minute of work: whatever is wrong, the test ends.
ENDLESS = "{% for i in range(99999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}"


async def render(source: str | None) -> str:
    return await ChatTemplate(source, bos="<s>", eos="</s>").render(HELLO, None)


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
async def test_what_a_template_may_not_do(source: str) -> None:
    with pytest.raises(TemplateError):
        await render(source)


async def test_a_template_that_does_not_end_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "RENDER_SECONDS", 0.2)
    with pytest.raises(TemplateError, match=r"took over 0\.2 s"):
        await render(ENDLESS)


async def test_it_is_interrupted_as_well_when_nobody_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does one hold up those that wait for its thread, which has the whole time once it runs."""
    monkeypatch.setattr(chat, "RENDER_SECONDS", 0.2)
    with ThreadPoolExecutor(1) as only_thread:
        asyncio.get_running_loop().set_default_executor(only_thread)
        left = asyncio.create_task(render(ENDLESS))
        others = [asyncio.create_task(render(source)) for source in (ENDLESS, None, None)]
        await asyncio.sleep(0)
        left.cancel()
        others[1].cancel()
        async with asyncio.timeout(10):
            *errors, text = await asyncio.gather(left, *others, return_exceptions=True)
    assert [type(error) for error in errors] == [asyncio.CancelledError, TemplateError, asyncio.CancelledError]
    assert text == CHATML_HELLO


async def test_its_time_is_not_doubled_because_it_began_a_moment_after_its_timer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    delays: list[float] = []

    def later(delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        delays.append(delay)
        return call_later(delay, callback)

    call_later = loop.call_later
    monkeypatch.setattr(loop, "call_later", later)
    limit = chat._TimeLimit(loop, 100.0)
    clock = [1.0]
    monkeypatch.setattr("backends.gguf.chat.time.monotonic", lambda: clock[0])
    with limit:
        clock[0] = 100.0
        limit._look()
    limit.let_go()
    assert delays == [100.0, 1.0]


async def test_what_templates_use_works() -> None:
    source = (
        "{{ bos_token }}{% for m in messages %}{% if loop.first %}{{ m | tojson }}{% break %}{% endif %}{% endfor %}"
    )
    assert await render(source) == '<s>{"role": "user", "content": "hello"}'
    assert await render("{{ '-' * 3 }}{{ strftime_now('%Y')[:2] }}{{ 7 % 4 }}") == "---203"
    assert await render("{{ '<&>' | tojson }}") == '"<&>"'


async def test_without_a_template_chatml_is_used() -> None:
    assert await render(None) == CHATML_HELLO


def test_messages_reach_the_template_in_one_form() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    assert plain_messages([{"role": "developer", "content": parts}]) == [{"role": "system", "content": "ab"}]
    (message,) = plain_messages([{"role": "assistant", "content": None, "tool_calls": [call]}])
    assert message["content"] == ""
    assert message["tool_calls"][0]["function"]["arguments"] == {"x": 1}
