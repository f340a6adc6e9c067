"""Real TCP balancers, Debian's nginx and HAProxy, in front of gateways that come and go."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.debian import unpacked
from tests.engine import wait_for
from tests.redis_server import free_port

Balancer = Callable[[Path, Sequence[int]], AbstractContextManager[int]]

# It looks at nobody: a server that refuses a connection is passed over for that connection.
_NGINX = """\
daemon off;
master_process off;
load_module {module};
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
stream {{
    upstream gateways {{
        {servers}
    }}
    server {{
        listen 127.0.0.1:{port};
        proxy_pass gateways;
        proxy_connect_timeout 10s;
        proxy_timeout 600s;
    }}
}}
"""

# It looks at /readyz, and a connection that a server refuses is lost.
_HAPROXY = """\
global
    maxconn 1000
defaults
    mode tcp
    retries 0
    timeout connect 10s
    timeout client 600s
    timeout server 600s
    timeout check 10s
listen gateways
    bind 127.0.0.1:{port}
    option httpchk
    http-check send meth GET uri /readyz ver HTTP/1.1 hdr host localhost hdr connection close
    default-server check inter 100ms fall 1 rise 1
    {servers}
"""


@contextmanager
def nginx(folder: Path, gateways: Sequence[int]) -> Iterator[int]:
    """nginx's stream module in front of these ports; gives its own."""
    unpacked_at = unpacked("nginx", "libnginx-mod-stream")
    port, file = free_port(), folder / "nginx.conf"
    servers = "\n".join(f"server 127.0.0.1:{gateway} max_fails=0;" for gateway in gateways)
    module = unpacked_at / "usr/lib/nginx/modules/ngx_stream_module.so"
    file.write_text(_NGINX.format(module=module, folder=folder, servers=servers, port=port))
    command = [str(unpacked_at / "usr/sbin/nginx"), "-e", "stderr", "-p", str(folder), "-c", str(file)]
    with _running(command, folder, port):
        yield port


@contextmanager
def haproxy(folder: Path, gateways: Sequence[int]) -> Iterator[int]:
    """HAProxy in front of these ports; gives its own."""
    unpacked_at = unpacked("haproxy", "liblua5.3-0", "libopentracing-c-wrapper0", "libopentracing1")
    port, file = free_port(), folder / "haproxy.cfg"
    servers = "\n    ".join(f"server gateway-{gateway} 127.0.0.1:{gateway}" for gateway in gateways)
    file.write_text(_HAPROXY.format(servers=servers, port=port))
    (library,) = {str(path.parent) for path in unpacked_at.glob("usr/lib/*/liblua5.3.so.0")}
    command = [str(unpacked_at / "usr/sbin/haproxy"), "-db", "-f", str(file)]
    with _running(command, folder, port, {"LD_LIBRARY_PATH": library}):
        yield port


@contextmanager
def _running(
    command: Sequence[str], folder: Path, port: int, environment: dict[str, str] | None = None
) -> Iterator[None]:
    log = folder / "balancer.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        wait_for(lambda: _listens(port) or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
