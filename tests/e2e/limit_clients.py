"""Clients that want more than a key may have: each asks again and again over a connection of its own, gateways in turn.

Run by test_replicas.py in several processes. Prints one line of JSON: how often each status (and error code) came.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter

# After a refusal; all clients together still ask for many times what is left.
PAUSE_SECONDS = 0.1
MAX_TOKENS = 90


async def client(port: int, key: str, until: float, ends: Counter[str]) -> None:
    """Asks until `until` (monotonic seconds), each time saying when it asked."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.monotonic() < until:
        fields = {"model": "m", "messages": [], "max_tokens": MAX_TOKENS, "user": str(time.monotonic_ns())}
        body = json.dumps(fields).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(answer.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        content = json.loads(await reader.readexactly(length))
        status = int(answer.split(b" ", 2)[1])
        ends["200" if status == 200 else f"{status} {content['error']['code']}"] += 1
        if status != 200:
            await asyncio.sleep(PAUSE_SECONDS)
    writer.close()


async def main(ports: list[int], key: str, clients: int, seconds: float) -> None:
    """So many clients for so long."""
    ends: Counter[str] = Counter()
    until = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(client(ports[number % len(ports)], key, until, ends))
    print(json.dumps(ends))


if __name__ == "__main__":
    asyncio.run(main([int(port) for port in sys.argv[1].split(",")], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
