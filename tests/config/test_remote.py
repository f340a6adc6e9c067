"""Names in DNS as they are written in the file."""

from __future__ import annotations

import pytest

from config.remote import DnsName, dns_name
from config.vllm import VllmSettings


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("dns://vllm-headless:8000", DnsName("vllm-headless", 8000)),
        ("dns://vllm.prod.svc.cluster.local.:8000", DnsName("vllm.prod.svc.cluster.local.", 8000)),
        ("dns://_http._tcp.vllm", DnsName("_http._tcp.vllm", None)),
        ("dns://10.0.0.2/vllm:8000", DnsName("vllm", 8000, "10.0.0.2")),
        ("dns://[fd00::2]:8600/_vllm._tcp.service.consul", DnsName("_vllm._tcp.service.consul", None, "fd00::2", 8600)),
    ],
)
def test_names_are_understood(text: str, name: DnsName) -> None:
    assert dns_name(text) == name
    assert VllmSettings(discover=text).places == (text,)


@pytest.mark.parametrize(
    "text",
    [
        "vllm:8000",
        "dns://vllm",
        "dns://_http._tcp.vllm:80",
        "dns://vllm:0",
        "dns://vllm:65536",
        "dns:///vllm:1",
        "dns://10.0.0.256/vllm:1",
        "dns://10.0.0.1:0/vllm:1",
        "dns://a b:1",
        "dns://a\n:1",
        "http://vllm:8000",
        "",
    ],
)
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"should be dns://name:port"):
        VllmSettings(discover=text)
