"""What a connection is told that never becomes a request: a whole answer as bytes, after which it closes.

Neighbours: listener.py, tls_link.py; errors.py has the refusals of requests.
"""

from __future__ import annotations

import json


def refusal(status: int, code: str, message: str) -> bytes:
    """Head and body, in OpenAI's words."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()
    head = (
        f"HTTP/1.1 {status} Refused\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
