"""Conversations as plain data, and the text the chat template makes of them, cut into prompt and answer parts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

START, END, TEXT_END = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
TOOL_CALL, TOOL_CALL_END = "<tool_call>", "</tool_call>"
TOOL_RESPONSE, TOOL_RESPONSE_END = "<tool_response>", "</tool_response>"
Values = dict[str, str | int | float | bool]


@dataclass(frozen=True)
class Parameter:
    """One argument of a tool; `options` makes it an enum."""

    name: str
    kind: str = "string"
    required: bool = True
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tool:
    """A function that the model may call."""

    name: str
    description: str
    parameters: tuple[Parameter, ...] = ()

    def signature(self) -> str:
        """The one line that the chat template writes for this tool: its description, then a call of it with types in
        the places of values, so that calling it is mostly copying."""
        parts = [
            f'"{p.name}": {"|".join(p.options) if p.options else p.kind}{"" if p.required else "?"}'
            for p in self.parameters
        ]
        described = f"{self.description} " if self.description else ""
        return f'{described}{{"name": "{self.name}", "arguments": {{{", ".join(parts)}}}}}'

    def to_openai(self) -> dict[str, object]:
        """The tool as an entry of the OpenAI `tools` list."""
        properties: dict[str, object] = {}
        for p in self.parameters:
            properties[p.name] = {"type": p.kind} | ({"enum": list(p.options)} if p.options else {})
        schema = {
            "type": "object",
            "properties": properties,
            "required": [p.name for p in self.parameters if p.required],
        }
        function = {"name": self.name, "description": self.description, "parameters": schema}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class Message:
    """One message; `trained` marks an answer that the model shall learn, `cut` one shown without its end."""

    role: str
    content: str
    trained: bool = False
    cut: bool = False


@dataclass
class Conversation:
    """A chat as training text; the system message stands apart because the tools share its block."""

    messages: list[Message]
    system: str = ""
    tools: list[Tool] = field(default_factory=list)

    def parts(self) -> list[tuple[str, bool]]:
        """The rendered text in pieces; True marks what the model shall learn to write."""
        pieces: list[tuple[str, bool]] = []
        if self.system or self.tools:
            lines = "\n".join(["Tools:", *(tool.signature() for tool in self.tools)]) if self.tools else ""
            gap = "\n\n" if self.system and self.tools else ""
            pieces.append((f"{START}system\n{self.system}{gap}{lines}{END}\n", False))
        for message in self.messages:
            pieces.append((f"{START}{message.role}\n", False))
            pieces.append((message.content + ("" if message.cut else END), message.trained))
            pieces.append(("" if message.cut else "\n", False))
        return pieces


def call_text(name: str, arguments: Values) -> str:
    """A tool call in the Hermes form."""
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"{TOOL_CALL}\n{body}\n{TOOL_CALL_END}"


def response_text(content: str) -> str:
    """The result of a tool as the template writes it."""
    return f"{TOOL_RESPONSE}\n{content}\n{TOOL_RESPONSE_END}"
