"""Redis that is gone, slow, full, read-only or another: what is configured happens at once, and it heals by itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from pathlib import Path

import pytest
import trustme

from config.errors import ConfigError
from config.redis import RedisSettings
from gateway import keyedits
from gateway.errors import LimitsUnavailable, RateLimited, answer
from gateway.keys import hash_of
from gateway.keysfile import KeysFile
from gateway.limits import Limits
from gateway.replicas.keys import RedisStore
from tests.engine import wait_for
from tests.gateway.metering import left
from tests.gateway.replicas.sharing import replica
from tests.redis_server import RedisServer, free_port, running_redis

NOBODY = "redis://127.0.0.1:1"


async def test_closed_lets_nobody_in_uncounted() -> None:
    async with replica(NOBODY, Limits(requests_per_minute=5), on_error="closed") as gateway:
        with pytest.raises(LimitsUnavailable) as caught:
            await gateway.reserve()
        refusal = answer(caught.value, "r")
        assert (refusal.status, refusal.code) == (503, "limits_unavailable")
        assert dict(refusal.headers)[b"retry-after"] == b"1"
        assert gateway.limiter.without_redis == 1


async def test_open_lets_everybody_in_and_tells_no_figures() -> None:
    async with replica(NOBODY, Limits(requests_per_minute=1), on_error="open") as gateway:
        admitted = [await gateway.reserve() for _ in range(5)]
        assert {lease.header_lines() for lease in admitted} == {b""}
        for lease in admitted:
            lease.settle(5)
        assert gateway.limiter.without_redis == 5


async def test_local_counts_in_each_gateway_for_itself() -> None:
    limits = Limits(requests_per_minute=2)
    async with replica(NOBODY, limits, on_error="local") as one, replica(NOBODY, limits, on_error="local") as other:
        for gateway in (one, other):
            assert [left(await gateway.reserve(), "requests") for _ in range(2)] == [1, 0]
            with pytest.raises(RateLimited):
                await gateway.reserve()


async def test_paused_redis_costs_a_few_requests_its_timeout_and_then_nothing(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with replica(own_redis.url, Limits(requests_per_minute=1000), on_error="open", timeout_ms=20) as gateway:
        await gateway.until(up=True)
        with own_redis.paused():
            async with asyncio.timeout(30):
                while gateway.limiter.up:
                    await gateway.reserve()
            began = time.perf_counter()
            for _ in range(1000):
                await gateway.reserve()
            # Twenty milliseconds each would be twenty seconds.
            assert time.perf_counter() - began < 5
            assert gateway.limiter.without_redis >= 1003
        await gateway.until(up=True)
        before = gateway.limiter.without_redis
        await gateway.reserve()
        assert gateway.limiter.without_redis - before <= 1
    told = [record.message for record in caplog.records if record.name == "upshift"]
    assert 2 <= len(told) <= 6
    assert "Redis cannot be used: " in told[0]
    assert "Redis answers again after" in told[1]


async def test_what_is_counted_outlives_a_restart_of_a_redis_that_keeps_its_data(own_redis: RedisServer) -> None:
    async with replica(own_redis.url, Limits(requests_per_minute=3, concurrent=2)) as gateway:
        running = [await gateway.reserve(), await gateway.reserve()]
        own_redis.stop(signal.SIGKILL)
        await gateway.until(up=False)
        with pytest.raises(LimitsUnavailable):
            await gateway.reserve()
        # Told when Redis is back.
        running[0].settle(0)
        own_redis.start()
        await gateway.until(up=True)
        await gateway.reserve()
        with pytest.raises(RateLimited, match="3 requests per minute"):
            await gateway.reserve()


async def test_running_requests_are_known_again_to_a_redis_that_lost_them(redis: RedisServer) -> None:
    async with replica(redis.url, Limits(concurrent=2)) as gateway:
        first, _ = await gateway.reserve(), await gateway.reserve()
        redis.command("FLUSHALL")
        redis.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await gateway.until(up=False)
        await gateway.until(up=True)
        with pytest.raises(RateLimited, match="at the same time"):
            await gateway.reserve()
        first.settle(0)
        await gateway.reserve()


async def test_scripts_that_redis_forgot_are_loaded_again(redis: RedisServer) -> None:
    async with replica(redis.url, Limits(requests_per_minute=100), on_error="open") as gateway:
        await gateway.reserve()
        redis.command("SCRIPT", "FLUSH")
        await gateway.reserve()
        assert gateway.limiter.without_redis == 1
        await gateway.until(up=True)
        assert left(await gateway.reserve(), "requests") == 98


async def test_promoted_replica_is_found_and_knows_what_was_counted(own_redis: RedisServer, tmp_path: Path) -> None:
    with running_redis(tmp_path / "second", edition=own_redis.edition) as second:
        second.command("REPLICAOF", "127.0.0.1", str(own_redis.port))
        urls = f"{second.url},{own_redis.url}"
        async with replica(urls, Limits(requests_per_minute=3)) as gateway:
            await gateway.reserve()
            assert left(await gateway.reserve(), "requests") == 1
            wait_for(lambda: own_redis.command("WAIT", "1", "1000") >= 1)
            # As Sentinel does it: the old one is gone, the other is told.
            own_redis.stop(signal.SIGKILL)
            await gateway.until(up=False)
            second.command("REPLICAOF", "NO", "ONE")
            await gateway.until(up=True)
            assert left(await gateway.reserve(), "requests") == 0
            with pytest.raises(RateLimited):
                await gateway.reserve()


async def test_demoted_redis_is_left(redis: RedisServer, own_redis: RedisServer) -> None:
    async with replica(f"{redis.url},{own_redis.url}", Limits(requests_per_minute=100), on_error="open") as gateway:
        await gateway.reserve()
        assert redis.command("DBSIZE") > 0
        try:
            redis.command("REPLICAOF", "127.0.0.1", str(own_redis.port))
            async with asyncio.timeout(60):
                while not own_redis.command("KEYS", "*"):
                    await gateway.reserve()
                    await asyncio.sleep(0)
        finally:
            redis.command("REPLICAOF", "NO", "ONE")
        assert own_redis.command("DBSIZE") > 0


async def test_full_redis_goes_on_counting(own_redis: RedisServer) -> None:
    limits = Limits(requests_per_minute=3)
    async with replica(own_redis.url, limits) as gateway:
        await gateway.reserve()
        own_redis.command("CONFIG", "SET", "maxmemory", "1")
        await gateway.reserve()
        async with replica(own_redis.url, limits) as other:
            await other.reserve()
            with pytest.raises(RateLimited):
                await other.reserve()


async def test_key_of_somebody_elses_making_harms_nobody_else(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with replica(redis.url, Limits(requests_per_minute=100), on_error="open") as gateway:
        redis.command("RPUSH", f"{{upshift}}:{gateway.key.digest[:16].hex()}:counts", "x")
        for _ in range(5):
            assert (await gateway.reserve()).header_lines() == b""
        assert gateway.limiter.up
        assert "WRONGTYPE" in caplog.text


@pytest.mark.parametrize("how", ["url", "file", "user"])
async def test_password_opens_and_is_told_to_nobody(
    own_redis: RedisServer, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "canary-5f1c"
    own_redis.command("CONFIG", "SET", "requirepass", secret)
    place = own_redis.url.removeprefix("redis://")
    url = {"url": f"redis://:{secret}@{place}", "user": f"redis://default:{secret}@{place}", "file": own_redis.url}[how]
    file = tmp_path / "password"
    file.write_text(secret + "\n")
    caplog.set_level(logging.DEBUG)
    async with replica(
        url, Limits(requests_per_minute=9), password_file=str(file) if how == "file" else None
    ) as gateway:
        assert left(await gateway.reserve(), "requests") == 8
    async with replica(f"redis://:{secret}-wrong@{place}", Limits(requests_per_minute=9)) as gateway:
        with pytest.raises(LimitsUnavailable):
            await gateway.reserve()
    assert "WRONGPASS" in caplog.text
    assert secret not in caplog.text


async def test_node_of_a_cluster_takes_all_keys_of_a_request(tmp_path: Path) -> None:
    with running_redis(tmp_path / "node", "--cluster-enabled", "yes") as node:
        node.command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        async with replica(node.url, Limits(requests_per_minute=9, concurrent=3)) as gateway:
            await gateway.until(up=True)
            assert left(await gateway.reserve(), "requests") == 8


async def test_somebody_who_is_not_redis_is_left_alone() -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await writer.drain()
            writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with replica(f"redis://127.0.0.1:{port}", Limits(requests_per_minute=9)) as gateway:
            with pytest.raises(LimitsUnavailable):
                await gateway.reserve()


async def test_what_a_stopped_redis_does_when_it_wakes_up_is_undone(own_redis: RedisServer) -> None:
    limits = Limits(requests_per_minute=100, tokens_per_minute=1000, concurrent=4)
    async with replica(own_redis.url, limits, on_error="open", timeout_ms=50) as gateway:
        await gateway.until(up=True)
        with own_redis.paused():
            for _ in range(10):
                await gateway.reserve(250)
            assert not gateway.limiter.up
        await gateway.until(up=True)
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(RateLimited):
                    lease = await gateway.reserve(1000)
                    break
        assert left(lease, "requests") == 99


async def test_cluster_is_asked_where_its_keys_are(tmp_path: Path) -> None:
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
    with running_redis(tmp_path / "one", *options) as one, running_redis(tmp_path / "other", *options) as other:
        # All keys of ours are in one slot, 3450.
        one.command("CLUSTER", "ADDSLOTSRANGE", "8192", "16383")
        other.command("CLUSTER", "ADDSLOTSRANGE", "0", "8191")
        one.command("CLUSTER", "MEET", "127.0.0.1", str(other.port))
        wait_for(lambda: all(b"cluster_state:ok" in node.command("CLUSTER", "INFO") for node in (one, other)), 60)
        assert one.command("CLUSTER", "KEYSLOT", "{upshift}:x") == 3450
        async with replica(one.url, Limits(requests_per_minute=9, concurrent=3)) as gateway:
            await gateway.until(up=True)
            assert left(await gateway.reserve(), "requests") == 8
        assert other.command("DBSIZE") == 2
        store = RedisStore(RedisSettings(url=one.url))
        store.change(keyedits.add({"name": "a", "hash": hash_of("a")}, "x", 0.0))
        assert [key.name for key in (store.load() or KeysFile()).keys] == ["a"]


async def test_redis_behind_tls_is_trusted_by_its_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    port = free_port()
    names = {"--tls-cert-file": "cert.pem", "--tls-key-file": "key.pem", "--tls-ca-cert-file": "ca.pem"}
    files = [word for option, name in names.items() for word in (option, str(tmp_path / name))]
    with running_redis(tmp_path / "redis", "--tls-port", str(port), "--tls-auth-clients", "no", *files):
        url = f"rediss://localhost:{port}"
        async with replica(url, Limits(requests_per_minute=9)) as gateway:
            with pytest.raises(LimitsUnavailable):
                await gateway.reserve()
        with pytest.raises(ConfigError, match="certificate verify failed"):
            RedisStore(RedisSettings(url=url)).load()
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        async with replica(url, Limits(requests_per_minute=9)) as gateway:
            assert left(await gateway.reserve(), "requests") == 8
        assert RedisStore(RedisSettings(url=url)).load() is None
