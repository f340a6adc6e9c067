"""What is wrong with a configuration: every problem at once, each with its place."""

from __future__ import annotations

from dataclasses import dataclass

# Steps from the root of the tree: keys and list positions.
Place = tuple[str | int, ...]


def dotted(place: Place) -> str:
    """`("models", 0, "gguf")` as `models[0].gguf`, the way problems name a place."""
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to put right. `line` counts from 1 and is None where the value came from no file."""

    place: Place
    message: str
    line: int | None = None

    def __str__(self) -> str:
        where = dotted(self.place)
        text = f"{where}: {self.message}" if where else self.message
        return f"line {self.line}: {text}" if self.line is not None else text


class ConfigError(Exception):
    """The settings cannot be used. `problems` is never empty; `source` names the file, or says there was none."""

    def __init__(self, source: str, problems: tuple[Problem, ...]) -> None:
        self.source = source
        self.problems = problems
        super().__init__(str(self))

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return f"{self.source}: {self.problems[0]}"
        listed = "\n".join(f"  {problem}" for problem in self.problems)
        return f"{self.source}: {len(self.problems)} problems\n{listed}"
