"""Adapted linear layers with a backward pass of their own.

Written out layer by layer, an adapter costs more time in reading and writing activations than in arithmetic: a copy for
dropout, a product, a scaled copy and a sum for each layer, forward and backward. Here adapters add into the frozen
product (a matrix product that accumulates), layers on one input share its pass through their A matrices, and a layer
keeps its input and the rank-r product, nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vesselseg.models.kernels import swiglu, swiglu_gradient
from vesselseg.models.quantised import frozen_weight


def collect(parameter: nn.Parameter, gradient: Tensor) -> None:
    """Let a parameter's gradients add up in this tensor, also without autograd's knowing."""
    parameter.grad = gradient
    parameter.collects_gradients = True  # type: ignore[attr-defined]


def collects(parameter: nn.Parameter) -> bool:
    """Whether a backward pass may add to ``parameter.grad`` itself: nobody else waits for the gradient."""
    return getattr(parameter, "collects_gradients", False)


@dataclass(frozen=True)
class AdaptedLinear:
    """base: the frozen layer. a: (rank, in), b: (out, rank). The layer adds scaling * b a x."""

    base: nn.Module
    a: nn.Parameter
    b: nn.Parameter
    scaling: float

    @property
    def bias(self) -> Tensor | None:
        """The frozen layer's bias."""
        return self.base.bias  # type: ignore[return-value]

    @classmethod
    def of(cls, layer: Any, adapter: str = "default") -> AdaptedLinear:
        """From peft's layer, whose parameters it shares."""
        return cls(
            layer.get_base_layer(), layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, layer.scaling[adapter]
        )


def adapted(inputs: Tensor, layers: Sequence[AdaptedLinear], dropout: float = 0.0) -> tuple[Tensor, ...]:
    """The outputs (tokens, out) of layers on one input (tokens, in), all of one scaling.

    dropout: probability that an adapter misses an entry of the input; layers on one input miss the same entries.
    """
    return _Adapted.apply(inputs, dropout, tuple(layers), *_adapters(layers))


def adapted_mlp(
    inputs: Tensor, gate: AdaptedLinear, up: AdaptedLinear, down: AdaptedLinear, dropout: float = 0.0
) -> Tensor:
    """down(silu(gate(x)) * up(x)); keeps gate and up, not their product. inputs: (tokens, hidden)."""
    return _AdaptedMlp.apply(inputs, dropout, (gate, up, down), *_adapters((gate, up, down)))


def _adapters(layers: Sequence[AdaptedLinear]) -> list[nn.Parameter]:
    return [parameter for layer in layers for parameter in (layer.a, layer.b)]


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, dropout: float, layers: Any, *_: Tensor) -> tuple[Tensor, ...]:
        outputs, reduced, kept = _forward(inputs, layers, dropout)
        ctx.layers, ctx.dropout = layers, dropout
        ctx.save_for_backward(inputs, reduced, kept)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        inputs, reduced, kept = ctx.saved_tensors
        of_input, of_adapters = _backward(gradients, inputs, reduced, kept, ctx.layers, ctx.dropout)
        return of_input, None, None, *of_adapters


class _AdaptedMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, dropout: float, layers: Any, *_: Tensor) -> Tensor:
        (gate, up), reduced, kept = _forward(inputs, layers[:2], dropout)
        (output,), reduced_down, kept_down = _forward(swiglu(gate, up), layers[2:], dropout)
        ctx.layers, ctx.dropout = layers, dropout
        ctx.save_for_backward(inputs, reduced, kept, gate, up, reduced_down, kept_down)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        inputs, reduced, kept, gate, up, reduced_down, kept_down = ctx.saved_tensors
        product = swiglu(gate, up)
        of_product, of_down = _backward((gradient,), product, reduced_down, kept_down, ctx.layers[2:], ctx.dropout)
        del product
        of_gate_up = swiglu_gradient(gate, up, of_product)
        del of_product
        of_input, of_adapters = _backward(of_gate_up, inputs, reduced, kept, ctx.layers[:2], ctx.dropout)
        return of_input, None, None, *of_adapters, *of_down


def _forward(
    inputs: Tensor, layers: Sequence[AdaptedLinear], dropout: float
) -> tuple[tuple[Tensor, ...], Tensor, Tensor | None]:
    """Outputs, the input times all A matrices (tokens, all ranks), and which entries dropout kept."""
    seen, kept = inputs, None
    if dropout:
        seen, kept = torch.native_dropout(inputs, dropout, True)
    reduced = functional.linear(seen, torch.cat([layer.a for layer in layers]))
    outputs = []
    for layer, part in zip(layers, reduced.split([len(layer.a) for layer in layers], dim=1)):
        output = functional.linear(inputs, frozen_weight(layer.base), layer.bias)
        outputs.append(output.addmm_(part, layer.b.T, alpha=layer.scaling))
    return tuple(outputs), reduced, kept


def _backward(
    gradients: Sequence[Tensor],
    inputs: Tensor,
    reduced: Tensor,
    kept: Tensor | None,
    layers: Sequence[AdaptedLinear],
    dropout: float,
) -> tuple[Tensor, list[Tensor | None]]:
    """Gradients of the input and of (a, b, a, b, ...)."""
    ranks = [len(layer.a) for layer in layers]
    of_input: Tensor | None = None
    of_reduced, of_b = [], []
    for gradient, part, layer in zip(gradients, reduced.split(ranks, dim=1), layers):
        weight = frozen_weight(layer.base)
        of_input = gradient @ weight if of_input is None else of_input.addmm_(gradient, weight)
        of_reduced.append(gradient @ layer.b)
        of_b.append(_learned(layer.b, gradient, part, layer.scaling))
    joined = torch.cat(of_reduced, dim=1)
    scale = layers[0].scaling
    stacked = torch.cat([layer.a for layer in layers])
    seen = inputs
    if kept is None:
        of_input = of_input.addmm_(joined, stacked, alpha=scale)  # type: ignore[union-attr]
    else:
        scale /= 1 - dropout
        seen = inputs * kept
        of_input = of_input.addcmul_(joined @ stacked, kept, value=scale)  # type: ignore[union-attr]
    of_a = [_learned(layer.a, part, seen, scale) for layer, part in zip(layers, joined.split(ranks, dim=1))]
    return of_input, [gradient for pair in zip(of_a, of_b) for gradient in pair]


def _learned(parameter: nn.Parameter, left: Tensor, right: Tensor, scale: float) -> Tensor | None:
    """scale * left^T right as a parameter's gradient, or None where it was added to what has collected."""
    if collects(parameter):
        parameter.grad.addmm_(left.T, right, alpha=scale)  # type: ignore[union-attr]
        return None
    return (left.T @ right).mul_(scale)
