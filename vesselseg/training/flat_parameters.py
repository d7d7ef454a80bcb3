"""What trains, laid end to end in a few large tensors.

Adapters are many small matrices: DeepSpeed calls Python for each of them in every backward pass, which takes as long
as the arithmetic of a small micro-batch. Here DeepSpeed knows the large tensors only. The model's own parameters are
views of them, gradients collect in views of a second set, without DeepSpeed, over all micro-batches of an optimizer
step; then the large tensors get their gradients at once and DeepSpeed averages, clips and steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vesselseg.models.fused_linear import collect

LARGEST = 20_000_000  # elements of a large tensor, unless a single parameter is larger
MOST = 500_000_000  # elements that are laid end to end at all


@dataclass(frozen=True)
class Piece:
    """A large tensor, or a parameter on its own, and the parameters that lie in it, by name, one behind the other."""

    whole: nn.Parameter
    parts: tuple[tuple[str, nn.Parameter], ...]


class FlatParameters:
    """Views of large tensors in the place of parameters that are named and train."""

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        self.pieces: list[Piece] = []
        self.gradients: list[Tensor] = []
        for group in _groups(parameters):
            self.pieces.append(_piece(group))
            self.gradients.append(torch.zeros_like(self.pieces[-1].whole, requires_grad=False))
            _link(self.pieces[-1], self.gradients[-1])  # the parameters' own storage is free from here on

    @property
    def flat_buffers(self) -> list[nn.Parameter]:
        """The large tensors, which the optimizer steps on."""
        return [piece.whole for piece in self.pieces]

    def link(self) -> None:
        """Make every parameter and its gradient a view, of the storage that the large tensor has now."""
        for piece, gradient in zip(self.pieces, self.gradients):
            _link(piece, gradient)

    @contextlib.contextmanager
    def known_to(self, model: nn.Module) -> Iterator[None]:
        """While it lasts, the large tensors are parameters of the model: DeepSpeed asks there for their names."""
        names = [f"large_{number}" for number in range(len(self.pieces))]
        for name, whole in zip(names, self.flat_buffers):
            model.register_parameter(name, whole)
        try:
            yield
        finally:
            for name in names:
                delattr(model, name)
        self.link()  # DeepSpeed gives what it steps on a storage of its own

    def flush_gradients(self) -> Tensor:
        """A zero whose backward pass gives the large tensors the gradients that have collected."""
        return _FlushGradients.apply(tuple(self.gradients), *self.flat_buffers)

    def clear(self) -> None:
        """Gradients back to zero."""
        torch._foreach_zero_(self.gradients)


class _FlushGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradients: tuple[Tensor, ...], *flat_buffers: Tensor) -> Tensor:
        ctx.gradients = gradients
        return flat_buffers[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Any, ...]:
        return None, *ctx.gradients


def worth_laying(elements: int) -> bool:
    """Whether so many trained elements should be views of large tensors.

    Each process collects all gradients, of which ZeRO-2 would keep its share only: 1 GB at the limit. With whole tables
    or a whole language model, arithmetic hides what DeepSpeed does in Python anyway.
    """
    return elements <= MOST


def _link(piece: Piece, gradient: Tensor) -> None:
    start = 0
    for _, parameter in piece.parts:
        end = start + parameter.numel()
        parameter.data = piece.whole.data[start:end].view(parameter.shape)
        collect(parameter, gradient[start:end].view(parameter.shape))
        start = end


def _groups(parameters: Iterable[tuple[str, nn.Parameter]]) -> list[list[tuple[str, nn.Parameter]]]:
    groups: list[list[tuple[str, nn.Parameter]]] = []
    elements = LARGEST
    for name, parameter in parameters:
        if elements + parameter.numel() > LARGEST:
            groups.append([])
            elements = 0
        groups[-1].append((name, parameter))
        elements += parameter.numel()
    return groups


def _piece(group: list[tuple[str, nn.Parameter]]) -> Piece:
    return Piece(nn.Parameter(torch.cat([parameter.detach().reshape(-1) for _, parameter in group])), tuple(group))
