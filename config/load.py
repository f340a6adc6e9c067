"""Settings out of their layers: defaults < file < environment < command line.

Neighbours: schema.py (the tree), document.py (YAML), validate.py (tree and problems), show.py (where each value came
from). A configuration is used as a whole or not at all: one ConfigError lists every problem.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.document import Document, parse, scalar
from config.errors import ConfigError, Place, Problem, dotted
from config.schema import Settings
from config.tree import DEMO_SOURCE
from config.validate import validate

MAX_FILE_BYTES = 1024 * 1024

# The environment reaches the few settings that differ between places; everything else can use ${VAR} in the file.
ENVIRONMENT: Mapping[str, Place] = {
    "UPSHIFT_PROFILE": ("profile",),
    "UPSHIFT_HOST": ("server", "host"),
    "UPSHIFT_PORT": ("server", "port"),
    "UPSHIFT_LOG_FORMAT": ("log", "format"),
}


@dataclass(frozen=True, slots=True)
class Override:
    """One value from outside the file. `origin` is what the user typed, such as `--port` or `UPSHIFT_PORT`."""

    place: Place
    value: Any
    origin: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings and, by dotted place, where the values that are no defaults came from."""

    settings: Settings
    origins: Mapping[str, str]
    file: Path | None


def load(
    file: Path | None = None, *, environ: Mapping[str, str] | None = None, overrides: Sequence[Override] = ()
) -> Loaded:
    """Reads, layers and validates. Without `file` the variable UPSHIFT_CONFIG names one; without both there is none.

    Raises ConfigError. Relative paths of the file (_PATHS) start at its folder.
    """
    environ = os.environ if environ is None else environ
    if file is None and environ.get("UPSHIFT_CONFIG"):
        file = Path(environ["UPSHIFT_CONFIG"])
    document = parse(read_text(file), environ) if file is not None else Document()
    if file is not None:
        _anchor_paths(document.data, file.parent)
    layers = [Override(place, scalar(environ[name]), name) for name, place in ENVIRONMENT.items() if environ.get(name)]
    layers += overrides
    origins = {dotted(place): f"{file}:{line}" for place, line in document.lines.items()}
    for override in layers:
        _put(document.data, override.place, override.value)
        origins[dotted(override.place)] = override.origin
    source = str(file) if file is not None else "settings"
    settings = validate(Settings, document, source, {override.place: override.origin for override in layers})
    return Loaded(settings, origins, file)


def read_text(file: Path) -> str:
    """The file's text without a byte order mark. Raises ConfigError."""
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(str(file), (Problem((), f"cannot be read: {error.strerror}"),)) from error
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(str(file), (Problem((), f"is larger than {MAX_FILE_BYTES} bytes"),))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(str(file), (Problem((), "is not UTF-8 text", line),)) from error


def _anchor_paths(data: dict[str, Any], folder: Path) -> None:
    for place, made in _PATHS.items():
        _anchor(data, place, made, folder)


def _anchor(data: Any, place: Place, made: Callable[[str, Path], str], folder: Path) -> None:
    """Puts what `made` makes of the path at `place` there, if there is one."""
    step, *rest = place
    if step == "*":
        for element in data if isinstance(data, list) else ():
            _anchor(element, tuple(rest), made, folder)
    elif isinstance(data, dict) and step in data:
        value = data[str(step)]
        if rest:
            _anchor(value, tuple(rest), made, folder)
        elif isinstance(value, str) and value:
            data[str(step)] = made(value, folder)


def source_path(source: str, folder: Path) -> str:
    """`source` as an absolute path, `~` expanded and relative ones starting at `folder`; `demo` stays as it is."""
    return source if source == DEMO_SOURCE else absolute_path(source, folder)


def database_or_redis(place: str, folder: Path) -> str:
    """`place` as an absolute path; the word `redis` stays as it is."""
    return place if place == "redis" else absolute_path(place, folder)


def repository_or_path(source: str, folder: Path) -> str:
    """`source` as an absolute path where it looks like one or is a folder below `folder`; `demo` and everything else,
    which is a model's id on the Hugging Face hub, stay as they are."""
    if source == DEMO_SOURCE:
        return source
    path = absolute_path(source, folder)
    return path if source.startswith(("/", "./", "../", "~")) or Path(path).is_dir() else source


def absolute_path(path: str, folder: Path) -> str:
    """`path` with `~` expanded and, where it is relative, starting at `folder`."""
    return os.path.normpath(folder.absolute() / Path(os.path.expanduser(path)))


# Where the file names other files; * is every entry of a list.
_PATHS: Mapping[Place, Callable[[str, Path], str]] = {
    ("routing", "trace", "file"): absolute_path,
    ("auth", "keys_file"): absolute_path,
    ("auth", "keys_store"): database_or_redis,
    ("tls", "certificate"): absolute_path,
    ("tls", "key"): absolute_path,
    ("tls", "client_ca"): absolute_path,
    ("redis", "password_file"): absolute_path,
    ("models", "*", "gguf", "source"): source_path,
    ("models", "*", "vllm", "source"): repository_or_path,
    ("models", "*", "vllm", "python"): absolute_path,
    **{
        ("models", "*", kind, *rest): absolute_path
        for kind in ("gguf", "vllm")
        for rest in (("api_key_file",), ("tls", "ca_file"), ("tls", "certificate"), ("tls", "key"))
    },
}


def _put(data: dict[str, Any], place: Place, value: Any) -> None:
    """Sets a value along mapping keys; a file that has something else there is left for validation to report."""
    *parents, last = map(str, place)
    for step in parents:
        inner = data.setdefault(step, {})
        if not isinstance(inner, dict):
            return
        data = inner
    data[last] = value
