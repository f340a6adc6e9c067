"""The contestants of `make bench`: where each comes from, how it is started and what a request to it needs. Data only.

In `argv`, `files`, `environment` and `headers` these stand for what is known at the start: @install@ (its folder below
the cache), @work@ (an empty folder of this start), @port@ (where it has to listen on 127.0.0.1), @upstream@
(host:port of the mock), @spare@ (another free port), @python@ (the interpreter of this environment).

Neighbours: peers_install.py (fetches them), peers_run.py (runs them).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from config.load import ENVIRONMENT

MODEL = "bench"
UPSHIFT = "upshift"


@dataclass(frozen=True, slots=True)
class Peer:
    """`source` is (installer, what it fetches), None for what is here already; `overrides` are versions of packages
    below it that its own range leaves open; `files` are written into @work@."""

    name: str
    version: str
    argv: tuple[str, ...]
    source: tuple[str, str] | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


# Routing, metrics and the access log cannot be switched off; keys and limits are for those who name them.
_OPEN_YAML = """\
server: {host: 127.0.0.1, port: @port@}
models:
  - name: bench
    gguf: {openai: "http://@upstream@/v1"}
"""
_UPSHIFT_YAML = f"""{_OPEN_YAML}
auth: {{keys_file: "@work@/keys.yaml"}}
limits:
  default: {{requests_per_minute: 1000000000, tokens_per_minute: 1000000000, concurrent: 100000}}
"""
_KEYS_YAML = f"""\
keys:
  - {{name: bench, hash: 'sha256:{hashlib.sha256(b"bench").hexdigest()}', surfaces: [openai, operators]}}
"""

# docs.litellm.ai/docs/proxy/prod: master key, one worker per core, no verbose logging, JSON logs, errors only.
_LITELLM_YAML = """\
model_list:
  - model_name: bench
    litellm_params: {model: openai/bench, api_base: "http://@upstream@/v1", api_key: none}
general_settings: {master_key: sk-bench}
litellm_settings: {request_timeout: 600, set_verbose: false, json_logs: true, telemetry: false}
"""

# nginx.org: keepalive to the upstream needs HTTP/1.1 and an empty Connection; SSE needs proxy_buffering off. The access
# log is buffered, as the other gateway that writes one does it.
_NGINX_CONF = """\
daemon off;
worker_processes 1;
worker_rlimit_nofile 65536;
pid @work@/nginx.pid;
error_log stderr warn;
events { worker_connections 8192; }
http {
    access_log @work@/access.log combined buffer=64k flush=1s;
    client_body_temp_path @work@/body;
    proxy_temp_path @work@/proxy;
    fastcgi_temp_path @work@/fastcgi;
    uwsgi_temp_path @work@/uwsgi;
    scgi_temp_path @work@/scgi;
    keepalive_requests 100000000;
    upstream mock {
        server @upstream@;
        keepalive 64;
        keepalive_requests 100000000;
    }
    server {
        listen 127.0.0.1:@port@ backlog=4096;
        location / {
            proxy_pass http://mock;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 600s;
        }
    }
}
"""

_ADDRESS = ("--host", "127.0.0.1", "--port", "@port@")
_ROUTER_OPTIONS = (
    *_ADDRESS,
    *("--worker-urls", "http://@upstream@"),
    *("--prometheus-host", "127.0.0.1", "--prometheus-port", "@spare@"),
)
# Of their policies the one with the least work per request.
_LEAN = ("--policy", "round_robin")

_UPSHIFT_ARGV = ("@python@", "-m", "gateway.cli", "serve", "--config", "@work@/upshift.yaml")
# Whoever benches may have set them for their own gateway.
_UPSHIFT_ENVIRONMENT = {**dict.fromkeys(ENVIRONMENT, ""), "UPSHIFT_CONFIG": ""}

PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            UPSHIFT,
            "this tree",
            _UPSHIFT_ARGV,
            files={"upshift.yaml": _UPSHIFT_YAML, "keys.yaml": _KEYS_YAML},
            environment=_UPSHIFT_ENVIRONMENT,
            headers={"authorization": "Bearer bench"},
        ),
        Peer(
            "upshift-open",
            "no keys, no limits",
            _UPSHIFT_ARGV,
            files={"upshift.yaml": _OPEN_YAML},
            environment=_UPSHIFT_ENVIRONMENT,
        ),
        Peer(
            "litellm",
            "1.106.2",
            ("@install@/bin/litellm", "--config", "@work@/litellm.yaml", *_ADDRESS, "--num_workers", "1"),
            source=("pip", "litellm[proxy]"),
            files={"litellm.yaml": _LITELLM_YAML},
            # The price list that it would fetch from GitHub at every start is taken from the package.
            environment={"LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
            headers={"authorization": "Bearer sk-bench"},
        ),
        Peer(
            "vllm-router",
            "0.1.17",
            # The examples of its README name this policy, or none: the default, cache_aware, which costs more.
            ("@install@/bin/vllm-router", *_ROUTER_OPTIONS, "--policy", "consistent_hash"),
            source=("pip", "vllm-router"),
        ),
        Peer(
            "vllm-router-lean",
            "0.1.17",
            ("@install@/bin/vllm-router", *_ROUTER_OPTIONS, *_LEAN, "--log-level", "warning"),
            source=("pip", "vllm-router"),
        ),
        Peer(
            "sglang-router",
            "0.3.2",
            (
                "@install@/bin/python",
                "-m",
                "sglang_router.launch_router",
                *_ROUTER_OPTIONS,
                *_LEAN,
                "--log-level",
                "warn",
            ),
            source=("pip", "sglang-router"),
        ),
        Peer(
            "portkey",
            "1.15.2",
            ("node", "@install@/node_modules/@portkey-ai/gateway/build/start-server.js", "--port=@port@", "--headless"),
            source=("npm", "@portkey-ai/gateway"),
            # The version of its own lock file, which the package does not carry; with a later one every stream is
            # answered 500, "TypeError: immutable" (Portkey-AI/gateway issue 1389).
            overrides={"@hono/node-server": "1.13.5"},
            environment={"NODE_ENV": "production"},
            headers={"x-portkey-provider": "openai", "x-portkey-custom-host": "http://@upstream@/v1"},
        ),
        Peer(
            "nginx",
            "debian",
            ("@install@/usr/sbin/nginx", "-p", "@work@", "-c", "@work@/nginx.conf"),
            source=("deb", "nginx"),
            files={"nginx.conf": _NGINX_CONF},
        ),
    )
}
