"""Trainable parameters as views of a few flat buffers.

Adapters are many small matrices: DeepSpeed runs Python code for each of them in every backward pass, which takes as
long as the arithmetic of a small micro-batch. Here DeepSpeed sees the flat buffers only. The model's own parameters are
views of them, gradients accumulate in views of a second set of buffers over all micro-batches of an optimizer step;
then the buffers get their gradients at once and DeepSpeed averages, clips and steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vesselseg.models.fused_linear import collect

MAX_BUFFER = 20_000_000  # elements of a flat buffer, unless a single parameter is larger
MAX_TOTAL = 500_000_000  # trainable elements up to which flat buffers are used


@dataclass(frozen=True)
class FlatBuffer:
    """A tensor that DeepSpeed steps on, and the named parameters that are consecutive views of it.

    With ZeRO-3 it is a single parameter itself.
    """

    tensor: nn.Parameter
    parts: tuple[tuple[str, nn.Parameter], ...]


class FlatParameters:
    """Replaces named trainable parameters by views of flat buffers."""

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        self.buffers: list[FlatBuffer] = []
        self.gradients: list[Tensor] = []
        for group in _groups(parameters):
            self.buffers.append(_flatten(group))
            self.gradients.append(torch.zeros_like(self.buffers[-1].tensor, requires_grad=False))
            _link(self.buffers[-1], self.gradients[-1])  # frees the parameters' own storage

    @property
    def flat_buffers(self) -> list[nn.Parameter]:
        """The tensors that the optimizer steps on."""
        return [buffer.tensor for buffer in self.buffers]

    def link(self) -> None:
        """Make every parameter and its gradient a view of the buffers' current storage."""
        for buffer, gradient in zip(self.buffers, self.gradients):
            _link(buffer, gradient)

    @contextlib.contextmanager
    def registered_in(self, model: nn.Module) -> Iterator[None]:
        """Within the context, the flat buffers are parameters of the model, where DeepSpeed looks up their names."""
        names = [f"flat_{number}" for number in range(len(self.buffers))]
        for name, tensor in zip(names, self.flat_buffers):
            model.register_parameter(name, tensor)
        try:
            yield
        finally:
            for name in names:
                delattr(model, name)
        self.link()  # DeepSpeed moves the buffers to new storage

    def flush_gradients(self) -> Tensor:
        """A zero whose backward pass assigns the accumulated gradients to the flat buffers."""
        return _FlushGradients.apply(tuple(self.gradients), *self.flat_buffers)

    def clear(self) -> None:
        """Set the gradients to zero."""
        torch._foreach_zero_(self.gradients)


class _FlushGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradients: tuple[Tensor, ...], *flat_buffers: Tensor) -> Tensor:
        ctx.gradients = gradients
        return flat_buffers[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Any, ...]:
        return None, *ctx.gradients


def is_worth_flattening(elements: int) -> bool:
    """Whether a model with this many trainable elements should use flat buffers.

    Each process accumulates all gradients, of which ZeRO-2 would keep a partition only: 1 GB at the limit. When whole
    tables or a whole language model train, the arithmetic hides DeepSpeed's Python code.
    """
    return elements <= MAX_TOTAL


def _link(buffer: FlatBuffer, gradient: Tensor) -> None:
    start = 0
    for _, parameter in buffer.parts:
        end = start + parameter.numel()
        parameter.data = buffer.tensor.data[start:end].view(parameter.shape)
        collect(parameter, gradient[start:end].view(parameter.shape))
        start = end


def _groups(parameters: Iterable[tuple[str, nn.Parameter]]) -> list[list[tuple[str, nn.Parameter]]]:
    groups: list[list[tuple[str, nn.Parameter]]] = []
    elements = MAX_BUFFER
    for name, parameter in parameters:
        if elements + parameter.numel() > MAX_BUFFER:
            groups.append([])
            elements = 0
        groups[-1].append((name, parameter))
        elements += parameter.numel()
    return groups


def _flatten(group: list[tuple[str, nn.Parameter]]) -> FlatBuffer:
    return FlatBuffer(nn.Parameter(torch.cat([parameter.detach().reshape(-1) for _, parameter in group])), tuple(group))
