"""The GGUF engine as a process of its own: a small OpenAI-compatible ASGI app over runner.py.

Routes here, request shapes in protocol.py, answer shapes in answers.py, their way to the client in delivery.py. The
socket answers at once; /health says 503 with progress until the model is loaded.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from backends.gguf.answers import Answer, ChatAnswer, CompletionAnswer
from backends.gguf.asgi import (
    ClientGone,
    Receive,
    Refused,
    Scope,
    Send,
    check_content_type,
    read_body,
    refusal,
    respond,
    send_json,
    send_refusal,
)
from backends.gguf.chat import ChatTemplate, TemplateError, plain_messages
from backends.gguf.constrain import Grammar, UnsupportedSchema
from backends.gguf.delivery import Inbox, stream, watch, whole
from backends.gguf.generation import Generation
from backends.gguf.llama import LlamaError, check_grammar
from backends.gguf.metrics import exposition
from backends.gguf.protocol import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from backends.gguf.runner import Engine
from backends.gguf.sampler import SamplingParams
from backends.gguf.scheduler import QueueFull, TooLong

# Tokenizing is done beside the event loop from this size on: about 5 ms of work.
_LARGE_TEXT_BYTES = 32 * 1024

_Body = TypeVar("_Body", bound=BaseModel)

logger = logging.getLogger("upshift.engine")


class EngineApp:
    """The ASGI app. `names` are the model names it answers to; the first is the one it lists."""

    def __init__(self, engine: Engine, names: tuple[str, ...]) -> None:
        self._engine = engine
        self._names = names
        self._template: ChatTemplate | None = None
        self._routes: dict[tuple[str, str], Callable[[Receive, Send], Awaitable[None]]] = {
            ("POST", "/v1/chat/completions"): self._chat,
            ("POST", "/v1/completions"): self._complete,
            ("POST", "/tokenize"): self._tokenize,
            ("POST", "/detokenize"): self._detokenize,
            ("GET", "/v1/models"): self._models,
            ("GET", "/health"): self._health,
            ("GET", "/metrics"): self._metrics,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            handler = self._route(scope)
            check_content_type(scope)
            await handler(receive, send)
        except Refused as refused:
            await send_refusal(send, refused)
        except ClientGone:
            pass
        except Exception:  # the last stop: an answer in JSON, the cause in the log
            logger.exception("%s %s failed", scope["method"], scope["path"])
            await send_refusal(send, Refused(500, "internal_error", "the engine failed to answer; its log says why"))

    def _route(self, scope: Scope) -> Callable[[Receive, Send], Awaitable[None]]:
        method, path = scope["method"], scope["path"]
        handler = self._routes.get((method, path))
        if handler is None:
            if any(path == known for _, known in self._routes):
                raise Refused(405, "method_not_allowed", f"{method} is not allowed on {path}")
            raise Refused(404, "not_found", f"no such path: {path}")
        return handler

    # -- generation ----------------------------------------------------------------------------------------------

    async def _chat(self, receive: Receive, send: Send) -> None:
        body = await self._parse(receive, ChatRequest)
        tools = None if body.tool_choice == "none" else body.tools
        grammar = await self._grammar(body)
        prompt = await self._chat_tokens(body.messages, tools)
        generations, inbox = self._generations([prompt], body, grammar)
        answer = ChatAnswer(
            body.model or self._names[0],
            self._engine.model.pieces,
            generations,
            tools=bool(tools),
            logprobs=body.logprobs,
        )
        await self._generate(answer, inbox, body, receive, send)

    async def _complete(self, receive: Receive, send: Send) -> None:
        body = await self._parse(receive, CompletionRequest)
        prompts = await self._prompts(body.prompt)
        generations, inbox = self._generations(prompts, body)
        answer = CompletionAnswer(
            body.model or self._names[0], self._engine.model.pieces, generations, logprobs=body.logprobs is not None
        )
        await self._generate(answer, inbox, body, receive, send)

    async def _grammar(self, body: ChatRequest) -> Grammar | None:
        """Raises Refused for a schema that cannot be kept to, and one that llama.cpp does not understand."""
        try:
            grammar = body.grammar
            if grammar is not None and not grammar.after:
                await asyncio.to_thread(check_grammar, self._engine.model, grammar.text)
        except (UnsupportedSchema, LlamaError) as error:
            param = "response_format" if body.response_format is not None else "tools"
            raise Refused(400, "invalid_request", f"{param}: {error}", param=param) from error
        return grammar

    def _generations(
        self, prompts: list[list[int]], body: ChatRequest | CompletionRequest, grammar: Grammar | None = None
    ) -> tuple[list[Generation], Inbox]:
        """One Generation per prompt and choice, once it is sure that all can be served."""
        self._check_bias(body.logit_bias)
        most = self._engine.most_choices
        if len(prompts) * body.n > most:
            raise Refused(400, "invalid_request", f"n: at most {most} choices of all prompts together", param="n")
        limits = [self._answer_tokens(prompt, body) for prompt in prompts]
        seed = secrets.randbits(32) if body.seed is None else body.seed
        inbox = Inbox()
        generations: list[Generation] = []
        for prompt, max_tokens in zip(prompts, limits, strict=True):
            for choice in range(body.n):
                # Choice i draws with seed + i, so that choices differ.
                params = _sampling(body, (seed + choice) % 2**32)
                how = (params, body.stop, inbox.put, body.stream, grammar, body.cache_salt)
                generations.append(Generation(len(generations), prompt, max_tokens, *how))
        return generations, inbox

    def _answer_tokens(self, prompt: list[int], body: ChatRequest | CompletionRequest) -> int:
        context, wanted = self._engine.context_tokens, body.answer_tokens
        max_tokens = wanted if wanted is not None else max(context - len(prompt), 1)
        try:
            self._engine.check_fits(len(prompt), max_tokens)
        except TooLong as error:
            text = f"{len(prompt)} of the prompt and {max_tokens} of the answer were asked for"
            raise _too_long(context, text, "messages" if isinstance(body, ChatRequest) else "prompt") from error
        return max_tokens

    async def _generate(
        self, answer: Answer, inbox: Inbox, body: ChatRequest | CompletionRequest, receive: Receive, send: Send
    ) -> None:
        generations = answer.generations
        self._submit(generations)
        watcher = asyncio.create_task(watch(receive, inbox))
        try:
            if body.stream:
                usage = body.stream_options is not None and body.stream_options.include_usage
                await stream(send, inbox, answer, len(generations), usage=usage)
            else:
                await whole(send, inbox, answer, len(generations))
        finally:
            watcher.cancel()
            self._engine.cancel(generations)  # without effect on those that ended

    def _submit(self, generations: list[Generation]) -> None:
        try:
            self._engine.submit(generations)
        except QueueFull as error:
            waiting = self._engine.waiting
            message = f"{waiting} requests are waiting already; try again shortly"
            raise Refused(503, "overloaded", message, retry_after_seconds=1) from error

    # -- tokens --------------------------------------------------------------------------------------------------

    async def _chat_tokens(self, messages: list[Any], tools: list[Any] | None) -> list[int]:
        plain = plain_messages([message.model_dump(exclude_none=True) for message in messages])
        tool_list = [tool.model_dump(exclude_none=True) for tool in tools] if tools else None
        try:
            text = await self._chat_template().render(plain, tool_list)
        except TemplateError as error:
            raise Refused(400, "invalid_request", str(error), param="messages") from error
        # Templates write the BOS token themselves where the model wants one.
        return await self._tokens(text, add_special=False, field="messages")

    async def _prompts(self, prompt: str | list[str] | list[int] | list[list[int]]) -> list[list[int]]:
        many: list[Any] = prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]
        prompts = [
            await self._tokens(p, add_special=True, field="prompt") if isinstance(p, str) else list(p) for p in many
        ]
        n_vocab = self._engine.model.n_vocab
        for tokens in prompts:
            if not tokens:
                raise Refused(400, "invalid_request", "prompt: empty", param="prompt")
            if max(tokens) >= n_vocab:
                raise Refused(400, "invalid_request", f"prompt: token ids end at {n_vocab - 1}", param="prompt")
        return prompts

    async def _tokens(self, text: str, *, add_special: bool, field: str) -> list[int]:
        model, context = self._engine.model, self._engine.context_tokens
        if len(text) > context * model.longest_piece_bytes:
            raise _too_long(context, f"{len(text)} characters cannot fit into them", field)
        if len(text) < _LARGE_TEXT_BYTES:
            return model.tokenize(text, add_special=add_special, parse_special=True)
        return await asyncio.to_thread(model.tokenize, text, add_special=add_special, parse_special=True)

    def _chat_template(self) -> ChatTemplate:
        if self._template is None:
            model = self._engine.model
            self._template = ChatTemplate(
                model.chat_template, bos=model.special_text("bos"), eos=model.special_text("eos")
            )
        return self._template

    def _check_bias(self, bias: dict[int, float]) -> None:
        n_vocab = self._engine.model.n_vocab
        if bias and max(bias) >= n_vocab:
            raise Refused(400, "invalid_request", f"logit_bias: token ids end at {n_vocab - 1}", param="logit_bias")

    async def _tokenize(self, receive: Receive, send: Send) -> None:
        body = await self._parse(receive, TokenizeRequest)
        if body.messages is not None:
            tokens = await self._chat_tokens(body.messages, None)
        else:
            special = body.add_special_tokens is not False
            tokens = await self._tokens(body.prompt or "", add_special=special, field="prompt")
        await send_json(
            send, 200, {"count": len(tokens), "max_model_len": self._engine.context_tokens, "tokens": tokens}
        )

    async def _detokenize(self, receive: Receive, send: Send) -> None:
        body = await self._parse(receive, DetokenizeRequest)
        model = self._engine.model
        if body.tokens and max(body.tokens) >= model.n_vocab:
            raise Refused(400, "invalid_request", f"tokens: ids end at {model.n_vocab - 1}", param="tokens")
        await send_json(send, 200, {"prompt": model.detokenize(body.tokens).decode("utf-8", "replace")})

    # -- what is seen --------------------------------------------------------------------------------------------

    async def _models(self, _receive: Receive, send: Send) -> None:
        entry = {"object": "model", "created": 0, "owned_by": "upshift", "max_model_len": self._engine.context_tokens}
        await send_json(send, 200, {"object": "list", "data": [{"id": name, **entry} for name in self._names]})

    async def _health(self, _receive: Receive, send: Send) -> None:
        if self._engine.ready:
            await send_json(send, 200, {"status": "ok"})
        else:
            await send_json(send, 503, {"status": "loading", "progress": round(self._engine.progress, 3)})

    async def _metrics(self, _receive: Receive, send: Send) -> None:
        await respond(send, 200, [(b"content-type", b"text/plain; version=0.0.4")], exposition(self._engine))

    async def _parse(self, receive: Receive, shape: type[_Body]) -> _Body:
        """The body as `shape`, once the engine is ready and the model is ours. Raises Refused."""
        data = await read_body(receive)
        if not self._engine.ready:
            raise Refused(503, "model_loading", f"{self._names[0]} is loading", retry_after_seconds=1)
        try:
            body = shape.model_validate_json(data)
        except ValidationError as error:
            raise refusal(error) from error
        model = getattr(body, "model", None)
        if model is not None and model not in self._names:
            raise Refused(
                404, "model_not_found", f"no model {model!r} here; there is {self._names[0]!r}", param="model"
            )
        return body


def _too_long(context_tokens: int, what: str, field: str) -> Refused:
    message = f"This model's context is {context_tokens} tokens, but {what}. Shorten the prompt or lower max_tokens."
    return Refused(400, "context_length_exceeded", message, param=field)


def _sampling(body: ChatRequest | CompletionRequest, seed: int) -> SamplingParams:
    return SamplingParams(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        seed=seed,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        repetition_penalty=body.repetition_penalty,
        logit_bias=body.logit_bias,
        min_tokens=body.min_tokens,
        ignore_eos=body.ignore_eos,
        top_logprobs=body.top,
    )
