"""From the engine thread to the client: outputs of one request, as a stream of events or as one body."""

from __future__ import annotations

import asyncio
import json

from backends.gguf.answers import DONE, Answer
from backends.gguf.asgi import ClientGone, Receive, Refused, Send, send_json
from backends.gguf.generation import Output


class Inbox:
    """Outputs of one request on their way from the engine thread to its handler."""

    def __init__(self) -> None:
        self._outputs: list[Output] = []
        self._arrived = asyncio.Event()
        self._gone = False

    def put(self, output: Output) -> None:
        self._outputs.append(output)
        self._arrived.set()

    def close(self) -> None:
        """The client left."""
        self._gone = True
        self._arrived.set()

    async def take(self) -> list[Output]:
        """Everything that arrived since the last call, at least one. Raises ClientGone."""
        await self._arrived.wait()
        if self._gone:
            raise ClientGone
        self._arrived.clear()
        outputs, self._outputs = self._outputs, []
        return outputs


async def stream(send: Send, inbox: Inbox, answer: Answer, choices: int, *, usage: bool) -> None:
    """Events as they come, then [DONE]. The status goes out only with the first output, so that a failure before it is
    still an error answer; after it, an error event ends the stream without [DONE]. Raises Refused, ClientGone."""
    outputs = await inbox.take()
    _raise_error(outputs)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    payload = answer.opening()
    while True:
        for output in outputs:
            if output.error is not None:
                failure = Refused(500, "backend_error", output.error)
                payload += b"data: " + json.dumps(failure.body()).encode() + b"\n\n"
                await send({"type": "http.response.body", "body": payload})
                return
            payload += answer.chunks(output)
            choices -= output.finish_reason is not None
        if not choices:
            break
        if payload:
            await send({"type": "http.response.body", "body": payload, "more_body": True})
        outputs, payload = await inbox.take(), b""
    payload += answer.usage_chunk() if usage else b""
    await send({"type": "http.response.body", "body": payload + DONE})


async def whole(send: Send, inbox: Inbox, answer: Answer, choices: int) -> None:
    """One JSON body once every choice has ended. Raises Refused when the engine failed, ClientGone."""
    collected: list[list[Output]] = [[] for _ in range(choices)]
    while choices:
        outputs = await inbox.take()
        _raise_error(outputs)
        for output in outputs:
            collected[output.index].append(output)
            choices -= output.finish_reason is not None
    await send_json(send, 200, answer.body(collected))


def _raise_error(outputs: list[Output]) -> None:
    for output in outputs:
        if output.error is not None:
            raise Refused(500, "backend_error", output.error)


async def watch(receive: Receive, inbox: Inbox) -> None:
    """Ends the handler's waiting when the client leaves: uvicorn's send() would stay silent about it."""
    while (await receive())["type"] != "http.disconnect":
        pass
    inbox.close()
