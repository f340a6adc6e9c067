"""Trains the demo model on the CPU and writes demo.gguf: `python -m backends.gguf.demo.train`."""

from __future__ import annotations

import argparse
import multiprocessing
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from backends.gguf.demo import DEMO_MODEL_PATH
from backends.gguf.demo.chat import Conversation
from backends.gguf.demo.corpus import QUESTIONS, conversation
from backends.gguf.demo.model import DemoLlama, ModelShape
from backends.gguf.demo.optimizer import Muon
from backends.gguf.demo.tokenizer import train_tokenizer
from backends.gguf.demo.words import IN_PIECES, LEXICON, Source
from backends.gguf.demo.write_gguf import write_gguf

SEED = 20
STEPS = 2500
# Each of PROCESSES computes this much of a step on one thread: matrices this small gain nothing from a second thread,
# which is why there is a second process (3,700 tokens/s with one thread, 3,900 with two, 7,000 with two processes).
PROCESS_TOKENS = 2048
PROCESSES = 2
CHUNKS = 5
CHECKPOINT_STEPS = 250
MUON_RATE = 0.02
ADAM_RATE = 4e-3
MARKERS = re.compile(r"<\|\w+\|>|</?tool_\w+>")
Example = tuple[list[int], list[bool]]


def make_tokenizer(shape: ModelShape) -> Tokenizer:
    """The tokenizer, trained on the listed questions and a sample of the conversations."""
    source = Source(random.Random(SEED))
    texts = [text for entry in QUESTIONS for text in (*entry["ask"], entry["answer"])] * 3
    texts += LEXICON * 30
    texts += [MARKERS.sub(" ", text) for _ in range(1200) for text, _ in conversation(source, 1.0).parts()]
    return train_tokenizer(texts, shape.vocabulary, spaced_words=210, in_pieces=IN_PIECES)


def encode(tokenizer: Tokenizer, made: Conversation) -> Example:
    """Token ids, and for each whether the model is trained to predict it."""
    tokens: list[int] = []
    trained: list[bool] = []
    for text, learn in made.parts():
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        tokens += ids
        trained += [learn] * len(ids)
    return tokens, trained


def step_examples(tokenizer: Tokenizer, source: Source) -> Iterator[list[Example]]:
    """For each step fresh examples of about PROCESS_TOKENS tokens."""
    for step in range(STEPS):
        examples: list[Example] = []
        size = 0
        while size < PROCESS_TOKENS:
            example = encode(tokenizer, conversation(source, step / STEPS))
            size += len(example[0])
            examples.append(example)
        yield examples


def chunks(examples: list[Example]) -> Iterator[tuple[Tensor, Tensor]]:
    """The examples as padded (tokens, trained) tensors; sorted by length, so that little is padding."""
    ordered = sorted(examples, key=lambda example: len(example[0]))
    total = sum(len(tokens) for tokens, _ in ordered)
    rows: list[Example] = []
    size = 0
    for example in ordered:
        rows.append(example)
        size += len(example[0])
        if size >= total / CHUNKS or example is ordered[-1]:
            width = len(rows[-1][0])
            yield (
                torch.tensor([tokens + [0] * (width - len(tokens)) for tokens, _ in rows]),
                torch.tensor([trained + [False] * (width - len(trained)) for _, trained in rows]),
            )
            rows, size = [], 0


def backward(model: DemoLlama, examples: list[Example]) -> float:
    """Adds up the gradients of this process's share of a step and returns its mean loss per trained token."""
    count = PROCESSES * sum(sum(trained) for _, trained in examples)
    total = 0.0
    for tokens, trained in chunks(examples):
        hidden = model(tokens[:, :-1])
        wanted = trained[:, 1:]
        logits = model.logits(hidden[wanted])
        loss = functional.cross_entropy(logits, tokens[:, 1:][wanted], reduction="sum") / count
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total * PROCESSES


def rate_at(step: int) -> float:
    """Short warm-up, full rate for the first 40 %, then linear to zero."""
    return min(1.0, (step + 1) / 50, (STEPS - step) / (0.6 * STEPS))


def save(model: DemoLlama, shape: ModelShape, tokenizer: Tokenizer, path: Path) -> None:
    weights = {name: weight.detach().numpy() for name, weight in model.state_dict().items()}
    write_gguf(path, shape, weights, tokenizer)


def help_out(model: DemoLlama, gradients: list[Tensor], tokenizer: Tokenizer, seed: int, turn: Connection) -> None:
    """A second process: its share of every step goes into `gradients`, shared with the first as the weights are."""
    torch.set_num_threads(1)
    weights = list(model.parameters())
    for examples in step_examples(tokenizer, Source(random.Random(seed))):
        turn.recv()
        backward(model, examples)
        for weight, shared in zip(weights, gradients, strict=True):
            shared.copy_(weight.grad)  # type: ignore[arg-type]
            weight.grad = None
        turn.send(sum(len(tokens) for tokens, _ in examples))


@contextmanager
def helper(model: DemoLlama, tokenizer: Tokenizer) -> Iterator[tuple[Connection, list[Tensor]]]:
    """Starts the second process; gives the connection that takes turns with it and the gradients it fills."""
    model.share_memory()
    gradients = [torch.zeros_like(weight).share_memory_() for weight in model.parameters()]
    ours, theirs = multiprocessing.Pipe()
    arguments = (model, gradients, tokenizer, SEED + 2, theirs)
    process = multiprocessing.get_context("fork").Process(target=help_out, args=arguments, daemon=True)
    process.start()
    try:
        yield ours, gradients
    finally:
        process.terminate()


def train(model: DemoLlama, tokenizer: Tokenizer, checkpoint: Callable[[], None]) -> None:
    """Runs all steps and calls `checkpoint` at times; the same seed and machine give the same weights."""
    with helper(model, tokenizer) as (turn, gradients):
        run_steps(model, tokenizer, checkpoint, turn, gradients)


def run_steps(
    model: DemoLlama, tokenizer: Tokenizer, checkpoint: Callable[[], None], turn: Connection, gradients: list[Tensor]
) -> None:
    """The loop of `train`: both processes compute, this one takes the step."""
    matrices = [weight for name, weight in model.layers.named_parameters() if weight.dim() == 2]
    others = [weight for name, weight in model.named_parameters() if weight.dim() == 1 or name.startswith("embed")]
    muon = Muon(matrices)
    adam = torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    started, cpu_started = time.monotonic(), time.process_time()
    seen, mean = 0, 0.0
    for step, examples in enumerate(step_examples(tokenizer, Source(random.Random(SEED + 1)))):
        turn.send(None)
        mean += 0.02 * (backward(model, examples) - mean)
        seen += sum(len(tokens) for tokens, _ in examples) + turn.recv()
        for weight, shared in zip(model.parameters(), gradients, strict=True):
            weight.grad.add_(shared)  # type: ignore[union-attr]
        for group in adam.param_groups:
            group["lr"] = ADAM_RATE * rate_at(step)
        muon.step(MUON_RATE * rate_at(step))
        adam.step()
        adam.zero_grad()
        if step % 50 == 49:
            wall, cpu = time.monotonic() - started, time.process_time() - cpu_started
            print(f"step {step + 1} loss {mean:.4f} tokens {seen} wall {wall:.0f} s cpu {cpu:.0f} s", flush=True)
        if step % CHECKPOINT_STEPS == CHECKPOINT_STEPS - 1:
            checkpoint()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DEMO_MODEL_PATH)
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    shape = ModelShape()
    tokenizer = make_tokenizer(shape)
    model = DemoLlama(shape)
    print(f"{sum(weight.numel() for weight in model.parameters())} parameters", flush=True)

    unfinished = arguments.out.with_suffix(".unfinished")

    def checkpoint() -> None:
        save(model, shape, tokenizer, unfinished)

    checkpoint()  # now, so that a fault in writing shows before half an hour of training
    train(model, tokenizer, checkpoint)
    save(model, shape, tokenizer, arguments.out)
    unfinished.unlink()


if __name__ == "__main__":
    main()
