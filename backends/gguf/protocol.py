"""What the engine accepts: OpenAI's bodies, bounded, unknown fields refused by name. Shapes only; server.py answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from backends.gguf.constrain import Grammar, json_grammar, tool_grammar

MAX_CHOICES = 128
MAX_STOP_STRINGS = 16
MAX_LOGIT_BIAS = 1024
MAX_MESSAGES = 4096
MAX_TOOLS = 128
MAX_PROMPTS = 128

_Text = Annotated[str, Field(max_length=10 * 2**20)]


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _none_is_default(data: Any) -> Any:
    """OpenAI's clients send null for "not set"."""
    return {k: v for k, v in data.items() if v is not None} if isinstance(data, dict) else data


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Body):
    include_usage: bool = False
    include_obfuscation: bool = False  # OpenAI's padding against traffic analysis; accepted, never added


class _Sampling(_Body):
    """Fields that chat and completions share. Ranges are OpenAI's where it has the field, else vLLM's."""

    model: str | None = None
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1, le=2**31 - 1)
    min_p: float = Field(0.0, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    stop: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=1024)], ...], BeforeValidator(_as_tuple)] = (
        Field((), max_length=MAX_STOP_STRINGS, strict=False)
    )
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    max_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, ge=0.01, le=10)
    logit_bias: dict[Annotated[int, Field(ge=0, strict=False)], Annotated[float, Field(ge=-100, le=100)]] = Field(
        default_factory=dict, max_length=MAX_LOGIT_BIAS
    )
    stream: bool = False
    stream_options: StreamOptions | None = None
    ignore_eos: bool = False
    min_tokens: int = Field(0, ge=0, le=2**31 - 1)
    # As vLLM's: prompts of different salts share nothing that is computed.
    cache_salt: str | None = Field(None, min_length=1, max_length=256)
    # Accepted without effect: they do not change what a single local model writes.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: Literal[False] = False
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    _nulls = model_validator(mode="before")(_none_is_default)

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only allowed when stream is true")
        return self

    @property
    def answer_tokens(self) -> int | None:
        """The most that each answer may have."""
        return self.max_tokens

    @model_validator(mode="after")
    def _least_within_most(self) -> Self:
        if self.answer_tokens is not None and self.min_tokens > self.answer_tokens:
            raise ValueError(f"min_tokens: is {self.min_tokens}, and the answer may have {self.answer_tokens} tokens")
        return self


class TextPart(_Body):
    type: Literal["text"]
    text: _Text


class FunctionCall(_Body):
    name: str = Field(max_length=256)
    arguments: _Text = "{}"


class ToolCallIn(_Body):
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class Message(BaseModel):
    """Unknown fields of a message are dropped: clients echo whole answers (refusal, annotations, audio: null)."""

    model_config = ConfigDict(extra="ignore", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: _Text | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCallIn] | None = Field(None, max_length=MAX_TOOLS)
    tool_call_id: str | None = None


class Function(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Body):
    type: Literal["function"]
    function: Function


class ToolName(_Body):
    name: str = Field(max_length=256)


class ToolChoice(_Body):
    type: Literal["function"]
    function: ToolName


class JsonSchema(_Body):
    name: str = Field("", max_length=256)
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(_Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_where_one_is_due(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema: belongs to the type json_schema")
        return self


class ChatRequest(_Sampling):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[Tool] | None = Field(None, min_length=1, max_length=MAX_TOOLS)
    tool_choice: Literal["auto", "none", "required"] | ToolChoice = "auto"
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: only allowed when logprobs is true")
        return self

    @model_validator(mode="after")
    def _tools_alone(self) -> Self:
        if self.tool_choice not in ("auto", "none") and not self.tools:
            raise ValueError("tool_choice: needs tools")
        if isinstance(self.tool_choice, ToolChoice):
            names = [tool.function.name for tool in self.tools or ()]
            if self.tool_choice.function.name not in names:
                raise ValueError(f"tool_choice: there is no tool {self.tool_choice.function.name!r}")
        if self.tools and self.tool_choice != "none" and self.response_format and self.response_format.type != "text":
            raise ValueError("response_format: not together with tools")
        return self

    @property
    def grammar(self) -> Grammar | None:
        """What the answer has to keep to. Raises UnsupportedSchema, which is about `response_format`."""
        if self.tools and self.tool_choice != "none":
            wanted = self.tool_choice.function.name if isinstance(self.tool_choice, ToolChoice) else None
            tools = [(t.function.name, t.function.parameters) for t in self.tools if wanted in {None, t.function.name}]
            return tool_grammar(tools, forced=self.tool_choice != "auto", several=self.parallel_tool_calls)
        form = self.response_format
        if form is None or form.type == "text":
            return None
        return json_grammar(None if form.json_schema is None else form.json_schema.schema_)

    @property
    def answer_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def top(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(_Sampling):
    """POST /v1/completions. `prompt` may be one or several texts or lists of tokens."""

    prompt: (
        _Text
        | Annotated[list[_Text], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
        | Annotated[list[list[Annotated[int, Field(ge=0)]]], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def answer_tokens(self) -> int | None:
        return self.max_tokens or 16  # OpenAI's default for this endpoint

    @property
    def top(self) -> int | None:
        return self.logprobs


class TokenizeRequest(_Body):
    """POST /tokenize, vLLM's shape: a prompt, or messages."""

    model: str | None = None
    prompt: _Text | None = None
    messages: list[Message] | None = Field(None, max_length=MAX_MESSAGES)
    add_special_tokens: bool | None = None

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt: give either prompt or messages")
        return self


class DetokenizeRequest(_Body):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0)]] = Field(max_length=10**6)
