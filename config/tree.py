"""What every part of the settings is made of: the frozen base class, and the kinds of text that several parts take.

Neighbours: schema.py (the tree), vllm.py, edge.py and routing.py (branches with files of their own).
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError

DEMO_SOURCE = "demo"

# ASCII only: a name ends up in a response header and in a metric label.
ModelName = Annotated[
    str, StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]*$", strict=True)
]
HostName = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9._:\[\]-]+$")]
Profile = Literal["dev", "prod", "auto"]
# How long an engine of ours has nothing to do before it is stopped; None is never.
IdleSeconds = Annotated[float, Field(strict=True, ge=1, le=31_536_000)] | None
SourcePath = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f]+$", strict=True)]

_ENDPOINT = re.compile(r"(https?://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?)(?:/v1)?/?")


def _endpoint(value: str) -> str:
    found = _ENDPOINT.fullmatch(value)
    try:
        if found and urlsplit(value).port != 0:
            return found[1]
    except ValueError:  # a port over 65535, or no IPv6 address between the brackets
        pass
    raise PydanticCustomError("endpoint", "should be http[s]://host:port, with or without /v1 behind it")


# As `http[s]://host:port`: the /v1 that base URLs end with is cut off.
Endpoint = Annotated[str, AfterValidator(_endpoint)]


def _network(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value))
    except ValueError as error:
        raise PydanticCustomError("network", "should be an address or a network, as in 10.0.0.0/8") from error


# Written as it was meant: 10.1.2.3 is 10.1.2.3/32.
Network = Annotated[str, AfterValidator(_network)]


class Tree(BaseModel):
    """One mapping of the file: cannot be changed, knows all its keys, describes each in the docstring below it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
