"""Linear layers with LoRA adapters (Hu et al. 2021) and a hand-written backward pass.

Computed layer by layer, an adapter spends more time on reading and writing activations than on arithmetic: a copy for
dropout, a product, a scaled copy and a sum for each layer, forward and backward. Here the adapter's product accumulates
into the frozen layer's output (addmm_), layers with the same input share one product with their stacked A matrices, and
a layer saves only its input and the rank-r product for the backward pass.

With y = W x + s B A x and the gradient g of y: dx = W^T g + s A^T B^T g, dA = s (B^T g) x^T, dB = s g (A x)^T.
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
    """Accumulate a parameter's gradients in this tensor, which backward passes may do without autograd."""
    parameter.grad = gradient
    parameter.collects_gradients = True  # type: ignore[attr-defined]


def collects(parameter: nn.Parameter) -> bool:
    """Whether a backward pass may add to ``parameter.grad`` directly, since no hook expects the gradient."""
    return getattr(parameter, "collects_gradients", False)


@dataclass(frozen=True)
class AdaptedLinear:
    """A frozen layer `base` and its adapter: a (rank, in), b (out, rank). The output is base(x) + scaling * b a x."""

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
    """Outputs (tokens, out) of layers with the same input (tokens, in) and the same scaling.

    dropout: of the adapters' input; layers with the same input share one dropout mask.
    """
    return _Adapted.apply(inputs, dropout, tuple(layers), *_adapters(layers))


def adapted_mlp(
    inputs: Tensor, gate: AdaptedLinear, up: AdaptedLinear, down: AdaptedLinear, dropout: float = 0.0
) -> Tensor:
    """down(silu(gate(x)) * up(x)) (Shazeer 2020); saves gate and up, and recomputes their product in the backward pass.

    inputs: (tokens, hidden). Returns the same shape.
    """
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
        product = swiglu(gate, up)  # (tokens, intermediate), the largest tensor here: freed as soon as possible
        of_product, of_down = _backward((gradient,), product, reduced_down, kept_down, ctx.layers[2:], ctx.dropout)
        del product
        of_gate_up = swiglu_gradient(gate, up, of_product)
        del of_product
        of_input, of_adapters = _backward(of_gate_up, inputs, reduced, kept, ctx.layers[:2], ctx.dropout)
        return of_input, None, None, *of_adapters, *of_down


def _forward(
    inputs: Tensor, layers: Sequence[AdaptedLinear], dropout: float
) -> tuple[tuple[Tensor, ...], Tensor, Tensor | None]:
    """Outputs (tokens, out), the input times all A matrices (tokens, all ranks), and dropout's mask (tokens, in)."""
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
        of_b.append(_parameter_gradient(layer.b, gradient, part, layer.scaling))
    joined = torch.cat(of_reduced, dim=1)  # (tokens, all ranks)
    scale = layers[0].scaling
    stacked = torch.cat([layer.a for layer in layers])  # (all ranks, in)
    seen = inputs
    if kept is None:
        of_input = of_input.addmm_(joined, stacked, alpha=scale)  # type: ignore[union-attr]
    else:
        scale /= 1 - dropout  # native_dropout scales what it keeps; its mask does not
        seen = inputs * kept
        of_input = of_input.addcmul_(joined @ stacked, kept, value=scale)  # type: ignore[union-attr]
    of_a = [_parameter_gradient(layer.a, part, seen, scale) for layer, part in zip(layers, joined.split(ranks, dim=1))]
    return of_input, [gradient for pair in zip(of_a, of_b) for gradient in pair]


def _parameter_gradient(parameter: nn.Parameter, left: Tensor, right: Tensor, scale: float) -> Tensor | None:
    """The gradient scale * left^T right of a parameter, or None if it was added to ``parameter.grad`` directly."""
    if collects(parameter):
        parameter.grad.addmm_(left.T, right, alpha=scale)  # type: ignore[union-attr]
        return None
    return (left.T @ right).mul_(scale)
