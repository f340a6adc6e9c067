"""A process that keeps the engine contract and misbehaves on request. Raw sockets and few imports: it starts quickly.

    python fake_engine.py SOCKET [loading] [stubborn] [silent] [child] [fail=CODE] [signal=NUMBER] [print=TEXT]
                                 [deaf] [metrics=TEXT] [insomniac] [stays]

GET /metrics answers with the TEXT given, GET /health is 503 with progress 0.42 while `loading`, until POST /loaded.
POST /sleep, POST /wake_up and GET /is_sleeping are vLLM's: one that sleeps answers nothing but these and GET. An
`insomniac` does not fall asleep, one that `stays` asleep does not wake up.
POST /v1/chat/completions with "stream": true sends one event and then waits until its connection closes; any other
request but POST /v1/completions to a deaf one answers {"ok": true}.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading

METRICS = {"text": b""}
ASLEEP = threading.Event()
READY = b'{"status":"ok"}'
LOADING = b'{"status":"loading","progress":0.42}'
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"Hel"}}]}\n\n'


def main(socket_path: str, modes: list[str]) -> None:
    for mode in modes:
        name, _, value = mode.partition("=")
        _obey(name, value)
    if "stubborn" in modes:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    if "silent" in modes:
        signal.pause()
    loaded = threading.Event()
    if "loading" not in modes:
        loaded.set()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(socket_path)
    listener.listen()
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_serve, args=(connection, loaded, modes), daemon=True).start()


def _obey(mode: str, value: str) -> None:
    if mode == "print":
        print(value.replace("\\n", "\n").replace("\\e", "\x1b"), flush=True)
    elif mode == "fail":
        print("upshift engine: error: the file is no GGUF file", file=sys.stderr, flush=True)
        sys.exit(int(value))
    elif mode == "signal":
        os.kill(os.getpid(), int(value))
    elif mode == "metrics":
        METRICS["text"] = value.replace("\\n", "\n").encode()
    elif mode == "child":
        _leave_a_child()


def _leave_a_child() -> None:
    """A process of our group that holds our output open and would live for ever."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        os.write(write_end, b".")
        while True:
            signal.pause()
    os.read(read_end, 1)
    print(f"child {pid}", flush=True)


def _exit_with_parent() -> None:
    while os.read(0, 1024):
        pass
    os._exit(0)


def _serve(connection: socket.socket, loaded: threading.Event, modes: list[str]) -> None:
    stream = connection.makefile("rb")
    while request_line := stream.readline():
        length = 0
        while (line := stream.readline()) not in (b"\r\n", b""):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        body = stream.read(length)
        if request_line.startswith(b"GET /health "):
            _answer(connection, b"200 OK" if loaded.is_set() else b"503 Loading", READY if loaded.is_set() else LOADING)
        elif request_line.startswith(b"GET /metrics "):
            _answer(connection, b"200 OK", METRICS["text"])
        elif (answer := _sleep(request_line, modes)) is not None:
            _answer(connection, *answer)
        elif ASLEEP.is_set() or (request_line.startswith(b"POST /v1/completions ") and "deaf" in modes):
            threading.Event().wait()
        elif b'"stream": true' in body:
            head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            connection.sendall(head + b"%x\r\n%b\r\n" % (len(EVENT), EVENT))
        else:
            if request_line.startswith(b"POST /loaded "):
                loaded.set()
            _answer(connection, b"200 OK", b'{"ok": true}')


def _sleep(request_line: bytes, modes: list[str]) -> tuple[bytes, bytes] | None:
    if request_line.startswith(b"POST /sleep?level=1 "):
        if "insomniac" not in modes:
            ASLEEP.set()
        return b"200 OK", b'{"status":"sleeping","level":1}'
    if request_line.startswith(b"POST /wake_up "):
        if "stays" not in modes:
            ASLEEP.clear()
        return b"200 OK", b'{"status":"awake","tags":null}'
    if request_line.startswith(b"GET /is_sleeping "):
        return b"200 OK", b'{"is_sleeping":%s}' % (b"true" if ASLEEP.is_set() else b"false")
    return None


def _answer(connection: socket.socket, status: bytes, body: bytes) -> None:
    head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(body))
    connection.sendall(head + body)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
