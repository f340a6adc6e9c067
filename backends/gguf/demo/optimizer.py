"""Muon (Keller Jordan, 2024): momentum whose matrix updates are orthogonalised; small models learn to copy sooner."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

# The quintic iteration and its coefficients are those of the published method.
_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalise(stack: Tensor, iterations: int = 5) -> Tensor:
    """Replaces each matrix of the stack by the nearest orthogonal one, roughly (all singular values near 1)."""
    tall = stack.shape[-2] > stack.shape[-1]
    x: Tensor = stack.mT if tall else stack
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    result: Tensor = x.mT if tall else x
    return result


class Muon:
    """Steps all matrices of equal shape at once, as one stack."""

    def __init__(self, matrices: Iterable[Tensor], momentum: float = 0.95) -> None:
        groups: defaultdict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        for matrix in matrices:
            groups[tuple(matrix.shape)].append(matrix)
        self.groups = list(groups.values())
        self.momentum = momentum
        self.averages = [torch.zeros(len(group), *group[0].shape) for group in self.groups]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for group, average in zip(self.groups, self.averages, strict=True):
            gradient = torch.stack([matrix.grad for matrix in group if matrix.grad is not None])
            average.lerp_(gradient, 1 - self.momentum)
            update = orthogonalise(gradient.lerp(average, self.momentum))
            scale = max(1.0, update.shape[-2] / update.shape[-1]) ** 0.5
            for matrix, change in zip(group, update, strict=True):
                matrix.add_(change, alpha=-rate * scale)
                matrix.grad = None
