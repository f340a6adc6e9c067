"""The only module that imports llama_cpp: a model and a context over its C API, every pointer checked, all closed.

llama-cpp-python is pinned exactly, because structs and signatures change between its patch releases; `self_check` says
so before anything is loaded. One thread at a time may use a Context (runner.py owns it); any thread may tokenize with a
Model. Source of the rules on decode codes, logits order and streams: llama.h and llama-kv-cache.cpp of 0.3.36.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as C  # noqa: N812 - it is the C API
import numpy as np
import numpy.typing as npt

from backends import hardware
from backends.fit import gguf_needs
from backends.gguf.header import GgufError
from backends.gguf.shape import read_shape
from backends.gguf.tile import Tiles, tiles_for
from backends.shape import ModelShape

PINNED_VERSION = "0.3.36"
_BATCH_FIELDS = ("n_tokens", "token", "embd", "pos", "n_seq_id", "seq_id", "logits")
_LOG_LEVEL_WARN = 3
_FLASH_ATTN_AUTO = -1

FloatMatrix = npt.NDArray[np.float32]


class LlamaError(Exception):
    """llama.cpp refused something. The message ends with its own last words where it had any."""


class DecodeError(LlamaError):
    """llama_decode failed; the sequences of that batch cannot be trusted any more. `code` as in llama.h."""

    def __init__(self, code: int) -> None:
        super().__init__(f"llama_decode returned {code}{_last_words()}")
        self.code = code


_log_lines: deque[str] = deque(maxlen=20)


@C.llama_log_callback  # type: ignore[untyped-decorator] # a ctypes function type
def _on_log(level: int, text: bytes, _user_data: Any) -> None:
    if level >= _LOG_LEVEL_WARN and level != 5:  # 5 continues the line before it
        _log_lines.append(text.decode("utf-8", "replace").strip())


def _last_words() -> str:
    """What llama.cpp logged as the cause, else its last line; in brackets, empty when it said nothing."""
    lines = [line for line in _log_lines if line]
    causes = [line.partition("error loading model: ")[2] for line in lines if "error loading model: " in line]
    said = (causes or lines)[-1:]
    return f" ({said[0]})" if said else ""


def self_check() -> None:
    """Raises LlamaError when the installed library is not the one this module was written against."""
    version = importlib.metadata.version("llama-cpp-python")
    if version != PINNED_VERSION:
        raise LlamaError(f"llama-cpp-python {version} is installed, {PINNED_VERSION} is needed: run `make setup`")
    fields = tuple(name for name, *_ in C.llama_batch._fields_)
    if fields != _BATCH_FIELDS:
        raise LlamaError(f"llama_batch has fields {fields}, expected {_BATCH_FIELDS}")
    C.llama_log_set(_on_log, None)
    C.llama_backend_init()


@dataclass(frozen=True, slots=True)
class SamplerSettings:
    """What a C sampler chain is made of. temperature > 0; top_k <= 0, top_p >= 1 and min_p <= 0 switch a part off."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int


class Model:
    """A loaded GGUF. `pieces[token]` is the token's bytes, empty for control tokens."""

    def __init__(self, path: Path, *, on_progress: Callable[[float], None] = lambda _: None) -> None:
        _check_magic(path)
        _log_lines.clear()

        @C.llama_progress_callback  # type: ignore[untyped-decorator] # a ctypes function type
        def progress(value: float, _user_data: Any) -> bool:
            on_progress(value)
            return True

        params = C.llama_model_default_params()
        params.progress_callback = progress
        self._model = C.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise LlamaError(_why_not(path))
        self.path = path
        self._vocab = C.llama_model_get_vocab(self._model)
        if not self._vocab or C.llama_model_has_encoder(self._model) or not C.llama_model_has_decoder(self._model):
            self.close()
            raise LlamaError(f"{path} holds no text-generation model (decoder with a vocabulary)")
        self.n_vocab: int = C.llama_vocab_n_tokens(self._vocab)
        self.trained_context_tokens: int = C.llama_model_n_ctx_train(self._model)
        self.partial_reuse: bool = not (
            C.llama_model_is_recurrent(self._model)
            or C.llama_model_is_hybrid(self._model)
            or C.llama_model_n_swa(self._model) > 0
        )
        self.adds_bos: bool = C.llama_vocab_get_add_bos(self._vocab)
        self.end_tokens = frozenset(t for t in range(self.n_vocab) if C.llama_vocab_is_eog(self._vocab, t))
        self.shape = _shape_of(path)
        self.pieces = [self._piece(token) for token in range(self.n_vocab)]
        self.longest_piece_bytes = max(map(len, self.pieces), default=1)
        unwritten = [token for token, piece in enumerate(self.pieces) if not piece and token not in self.end_tokens]
        self.hidden_tokens = np.array(unwritten, dtype=np.int64)

    @property
    def vocab(self) -> Any:
        """The C vocabulary."""
        return self._vocab

    def slot_bytes(self, slot_tokens: int) -> int:
        """Of the caches of one slot. Where the file's header does not tell it is what layers and heads of usual sizes
        would need, F16: 2 x layers x kv heads x head size x 2 bytes."""
        if self.shape is not None:
            return gguf_needs(self.shape, slot_tokens, 1).kv_bytes
        heads = max(C.llama_model_n_head(self._model), 1)
        head_size = C.llama_model_n_embd(self._model) // heads
        kv_heads = C.llama_model_n_head_kv(self._model)
        return 4 * slot_tokens * int(C.llama_model_n_layer(self._model) * kv_heads * head_size)

    @property
    def n_params(self) -> int:
        return int(C.llama_model_n_params(self._model))

    def tiles(self, threads: int) -> Tiles | None:
        """How its attention is computed by so many threads of this machine's CPU; None where it is not, or nobody can
        tell. Experts that a token does not meet and an output layer of its own count as weights here."""
        layers = [layer for layer in self.shape.layers if layer.kv_elements] if self.shape is not None else []
        kv_heads = C.llama_model_n_head_kv(self._model)
        if self.shape is None or not layers or kv_heads < 1 or C.llama_supports_gpu_offload():
            return None
        return tiles_for(
            weights=self.n_params - self.shape.vocabulary * self.shape.width,
            layers=len(layers),
            heads=self.shape.heads,
            head_size=layers[0].kv_elements // (2 * kv_heads),
            vector=64 if "AVX-512" in hardware.detect_host().instruction_sets else 32,
            threads=threads,
        )

    @property
    def chat_template(self) -> str | None:
        template = C.llama_model_chat_template(self._model, None)
        return template.decode("utf-8", "replace") if template else None

    def special_text(self, name: str) -> str:
        """Text of the `bos` or `eos` token, as templates expect it."""
        token = getattr(C, f"llama_vocab_{name}")(self._vocab)
        return C.llama_vocab_get_text(self._vocab, token).decode("utf-8", "replace") if token >= 0 else ""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`; `parse_special` reads control tokens such as <|im_start|> in the text as such."""
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        tokens = (C.llama_token * room)()
        count = C.llama_tokenize(self._vocab, data, len(data), tokens, room, add_special, parse_special)
        if count < 0:
            raise LlamaError(f"the tokenizer wants {-count} tokens for {len(data)} bytes")
        return tokens[:count]

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        return b"".join(self.pieces[token] for token in tokens)

    def close(self) -> None:
        """Idempotent. Close every Context first."""
        if self._model:
            C.llama_model_free(self._model)
            self._model = None

    def _piece(self, token: int) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = C.llama_token_to_piece(self._vocab, token, buffer, size, 0, False)
            if count >= 0:
                return buffer.raw[:count]
            size = -count


class Context:
    """KV cache of `slots` streams of `slot_tokens` cells each, and the batch that is decoded into it."""

    def __init__(self, model: Model, *, slots: int, slot_tokens: int, batch_tokens: int, threads: int) -> None:
        _check_memory(slots, slot_tokens, model)
        params = C.llama_context_default_params()
        params.n_ctx = slots * slot_tokens
        params.n_batch = batch_tokens
        params.n_ubatch = min(batch_tokens, 512)
        params.n_seq_max = slots
        params.n_outputs_max = slots
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = _FLASH_ATTN_AUTO
        # One stream per sequence: with a unified cache attention runs over everybody's cells (1,800 -> 1,275 tokens/s
        # at 32 sequences on the demo model).
        params.kv_unified = False
        _log_lines.clear()
        self._ctx = C.llama_init_from_model(model._model, params)
        if not self._ctx:
            raise LlamaError(f"no context of {slots} x {slot_tokens} tokens{_last_words()}")
        self._memory = C.llama_get_memory(self._ctx)
        if not self._memory:
            self.close()
            raise LlamaError("this model keeps no KV cache; it cannot generate text here")
        self.slot_tokens: int = C.llama_n_ctx_seq(self._ctx)
        self._slots = slots
        self._n_vocab = model.n_vocab
        self._logits_address = 0
        self._logits: FloatMatrix = np.empty((0, self._n_vocab), dtype=np.float32)
        self._make_batch(batch_tokens)

    def _make_batch(self, capacity: int) -> None:
        """Own numpy memory behind llama_batch: rows are written as slices instead of one ctypes store a token."""
        self._token = np.zeros(capacity, dtype=np.int32)
        self._pos = np.zeros(capacity, dtype=np.int32)
        self._slot = np.zeros(capacity, dtype=np.int32)
        self._wants_logits = np.zeros(capacity, dtype=np.int8)
        self._one = np.ones(capacity, dtype=np.int32)
        self._slot_pointers = self._slot.ctypes.data + np.arange(capacity, dtype=np.uintp) * self._slot.itemsize
        # `embd` stays NULL: rows are tokens. The annotations of llama_batch name arrays where the fields are pointers.
        batch: Any = C.llama_batch()
        for name, memory in (
            ("token", self._token),
            ("pos", self._pos),
            ("n_seq_id", self._one),
            ("seq_id", self._slot_pointers),
            ("logits", self._wants_logits),
        ):
            setattr(batch, name, ctypes.cast(memory.ctypes.data, type(getattr(batch, name))))
        self._batch = batch

    def decode(self, tokens: list[int], positions: list[int], slots: list[int], outputs: list[int]) -> FloatMatrix:
        """Computes one batch: token i at positions[i] of slots[i]. Returns logits [len(outputs), n_vocab] for the batch
        rows named in `outputs`, ascending.

        The matrix is llama.cpp's own memory: valid until the next call, writable. Raises DecodeError.
        """
        n_tokens = len(tokens)
        self._token[:n_tokens] = tokens
        self._pos[:n_tokens] = positions
        self._slot[:n_tokens] = slots
        self._wants_logits[:n_tokens] = 0
        self._wants_logits[outputs] = 1
        self._batch.n_tokens = n_tokens
        code = C.llama_decode(self._ctx, self._batch)
        if code != 0:
            raise DecodeError(code)
        if not outputs:
            return self._logits[:0]
        pointer = C.llama_get_logits(self._ctx)
        if not pointer:
            raise DecodeError(-1)
        address = ctypes.addressof(pointer.contents)
        if address != self._logits_address:
            # The buffer moves only when it grows; a view costs 7 µs to make. Rows past the outputs are never touched.
            self._logits_address = address
            self._logits = np.ctypeslib.as_array(pointer, shape=(self._slots, self._n_vocab))
        return self._logits[: len(outputs)]

    def sample(self, chain: SamplerChain, row: int) -> int:
        """Draws from the logits of batch row `row` (as they stand now in the matrix `decode` gave)."""
        return int(C.llama_sampler_sample(chain.pointer, self._ctx, row))

    def keep(self, slot: int, length: int) -> None:
        """Forgets everything of `slot` from token `length` on."""
        if not C.llama_memory_seq_rm(self._memory, slot, length, -1) and length > 0:
            raise LlamaError(f"slot {slot} could not be cut to {length} tokens")

    def copy(self, source: int, target: int, length: int) -> None:
        """`target` becomes the first `length` tokens of `source`. Streams copy whole, so the rest is cut afterwards."""
        C.llama_memory_seq_rm(self._memory, target, -1, -1)
        C.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        if self.held_tokens(target) > length:
            self.keep(target, length)

    def held_tokens(self, slot: int) -> int:
        """Tokens the cache really holds for `slot`."""
        return int(C.llama_memory_seq_pos_max(self._memory, slot)) + 1

    def close(self) -> None:
        """Idempotent."""
        if self._ctx:
            C.llama_free(self._ctx)
            self._ctx = None


class SamplerChain:
    """A C sampler chain, in the order vLLM applies its parts: temperature, min_p, top_k, top_p, draw.

    top_k comes first because it neither depends on the temperature nor removes the best token that min_p measures by;
    on a large vocabulary everything after it is then cheap.
    """

    def __init__(self, settings: SamplerSettings) -> None:
        self.pointer = C.llama_sampler_chain_init(C.llama_sampler_chain_default_params())
        if settings.top_k > 0:
            self._add(C.llama_sampler_init_top_k(settings.top_k))
        self._add(C.llama_sampler_init_temp(settings.temperature))
        if settings.min_p > 0:
            self._add(C.llama_sampler_init_min_p(settings.min_p, 1))
        if settings.top_p < 1:
            self._add(C.llama_sampler_init_top_p(settings.top_p, 1))
        self._add(C.llama_sampler_init_dist(settings.seed))

    def _add(self, part: Any) -> None:
        if not part:
            raise LlamaError("llama.cpp could not build a sampler")
        C.llama_sampler_chain_add(self.pointer, part)  # the chain owns the part from here on

    def close(self) -> None:
        """Idempotent."""
        if self.pointer:
            C.llama_sampler_free(self.pointer)
            self.pointer = None


_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class GrammarState:
    """Where one answer stands in a grammar (GBNF, rule `root`). What it takes ends the process if it does not fit, as
    llama.cpp has it: only tokens that it `admits` may be given to `accept`."""

    def __init__(self, model: Model, text: str) -> None:
        """Raises LlamaError for a grammar that llama.cpp does not understand."""
        self._end_tokens = model.end_tokens
        self._hidden = model.hidden_tokens
        self._pointer = C.llama_sampler_init_grammar(model.vocab, text.encode(), b"root")
        if not self._pointer:
            raise LlamaError(f"the grammar cannot be used{_last_words()}")

    def admits(self, token: int) -> bool:
        """Whether `token` may come next."""
        return bool(self._admitted(np.array([token]))[0])

    def restrict(self, logits: npt.NDArray[np.float32]) -> bool:
        """Makes every token impossible that may not come next, in place. False where none may."""
        admitted = self._admitted(np.arange(len(logits)))
        logits[~admitted] = -np.inf
        return bool(np.isfinite(logits).any())

    def _admitted(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        data = np.zeros(len(tokens), dtype=_TOKEN_DATA)
        data["id"] = tokens
        array = C.llama_token_data_array(data.ctypes.data_as(C.llama_token_data_p), len(tokens), -1, False)
        C.llama_sampler_apply(self._pointer, ctypes.byref(array))
        admitted: npt.NDArray[np.bool_] = np.isfinite(data["logit"])
        # Tokens that write nothing would stand for their names here.
        admitted[np.isin(tokens, self._hidden)] = False
        return admitted

    def accept(self, token: int) -> None:
        """Goes on behind `token`. The end of an answer is no part of it."""
        if token not in self._end_tokens:
            C.llama_sampler_accept(self._pointer, token)

    def close(self) -> None:
        """Idempotent."""
        if self._pointer:
            C.llama_sampler_free(self._pointer)
            self._pointer = None


def check_grammar(model: Model, text: str) -> None:
    """Raises LlamaError for a grammar that llama.cpp does not understand."""
    GrammarState(model, text).close()


def _check_memory(slots: int, slot_tokens: int, model: Model) -> None:
    """The kernel would promise any amount and kill the process when llama.cpp clears it."""
    wanted_bytes = slots * model.slot_bytes(slot_tokens)
    total_bytes = hardware.detect_host().total_ram_bytes
    if wanted_bytes > total_bytes or slots * slot_tokens >= 2**31:
        raise LlamaError(
            f"{slots} x {slot_tokens} tokens need {wanted_bytes / 2**30:,.1f} GiB of KV cache; "
            f"this machine has {total_bytes / 2**30:,.1f} GiB. Lower --parallel or --context-tokens"
        )


def _shape_of(path: Path) -> ModelShape | None:
    """None where llama.cpp reads a file that ours does not understand."""
    try:
        return read_shape(path)
    except GgufError:
        return None


def _why_not(path: Path) -> str:
    """Why llama.cpp does not load it. Of a damaged header it says no more than that it is one."""
    try:
        read_shape(path)
    except GgufError as error:
        return str(error)
    return f"{path} is not a model that llama.cpp can load{_last_words()}"


def _check_magic(path: Path) -> None:
    if path.is_fifo():
        raise LlamaError(f"{path} is a pipe and no file")  # opening it would wait for somebody to write
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise LlamaError(f"{path}: {error.strerror or error}") from error
    if magic != b"GGUF":
        raise LlamaError(f"{path} is not a GGUF file (it begins with {magic!r}, not b'GGUF')")
