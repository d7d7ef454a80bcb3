"""Frozen linear layers of the language model's blocks in 4 or 8 bits.

4 bits, for training and predicting: NF4 with quantised scales (QLoRA, Dettmers et al. 2023), packed and unpacked by
bitsandbytes. 8 bits, for predicting: integers and one scale per output, on any device. The layer's class, its name in a
checkpoint and its adapter do not change. Head, embeddings, vision tower and SAM2 are not quantised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from vesselseg.errors import UserError
from vesselseg.models.hub_kernels import without_hub_kernels

KINDS: Final = (None, "nf4", "int8")
BLOCK: Final = 64  # weights that share a scale
NF4_BYTES: Final = 0.5 + 1 / BLOCK + 4 / (256 * BLOCK)  # per weight: 4 bits, a byte per scale, a float per 256 scales


class PackedLinear(nn.Linear):
    """A linear layer whose frozen weight is stored in fewer bits.

    Before `pack` is called it is the original linear layer, usually on the meta device.
    """

    scales: Any = None  # not a buffer, so that casting the model does not cast it

    def pack(self, weight: Tensor) -> None:
        """Quantise a dense weight (out, in), given on the device and in the type of the computation."""
        raise NotImplementedError

    def _apply(self, fn: Any, recurse: bool = True) -> PackedLinear:
        super()._apply(fn, recurse)
        if self.scales is not None:
            moved = self.scales.to(self.weight.device)  # bitsandbytes' QuantState moves itself and returns nothing
            self.scales = self.scales if moved is None else moved
        return self


class Nf4Linear(PackedLinear):
    """Two weights per byte: `weight` is (weights / 2, 1) uint8, `scales` is bitsandbytes' QuantState."""

    def pack(self, weight: Tensor) -> None:
        """See `PackedLinear`."""
        packed, self.scales = _bitsandbytes().functional.quantize_4bit(
            weight.contiguous(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
        )
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs: (..., in). Returns (..., out)."""
        return _FrozenLinear.apply(inputs, self)


class Int8Linear(PackedLinear):
    """`weight` is (out, in) int8, `scales` (out,) float32; their product is within 0.4 % of the row's largest weight.

    The scale is applied to the output, so that no dense copy of the scaled weight is needed. Integers up to 127 are
    exact in bf16.
    """

    def pack(self, weight: Tensor) -> None:
        """See `PackedLinear`."""
        scales = weight.float().abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        self.scales = scales
        rounded = (weight.float() / scales.unsqueeze(1)).round().to(torch.int8)
        self.weight = nn.Parameter(rounded, requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs: (..., in). Returns (..., out)."""
        outputs = functional.linear(inputs, self.weight.to(inputs.dtype)) * self.scales.to(inputs.dtype)
        return outputs if self.bias is None else outputs + self.bias


class _FrozenLinear(torch.autograd.Function):
    """Unpacks the weight again for the backward pass instead of keeping the dense copy; it needs no gradient itself."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: Nf4Linear) -> Tensor:
        ctx.layer = layer
        return functional.linear(inputs, frozen_weight(layer), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] @ frozen_weight(ctx.layer), None


def frozen_weight(layer: nn.Module) -> Tensor:
    """The dense weight (out, in) of a linear layer, in the type of its computation; 4-bit weights are unpacked."""
    if not isinstance(layer, Nf4Linear) or layer.scales is None:
        return layer.weight  # type: ignore[return-value]
    return _bitsandbytes().functional.dequantize_4bit(layer.weight, layer.scales)


def number_of_weights(parameter: Tensor) -> int:
    """Number of elements of a parameter before it was partitioned (ZeRO-3) or packed."""
    return int(getattr(parameter, "ds_numel", 2 * parameter.numel() if _is_packed(parameter) else parameter.numel()))


def bytes_per_weight(kind: str | None, dtype: torch.dtype) -> float:
    """Bytes per weight of a linear layer in the blocks, including the scales of NF4."""
    return {"nf4": NF4_BYTES, "int8": 1.0}.get(kind or "", float(dtype.itemsize))


def mark_for_quantising(language: PreTrainedModel, kind: str = "nf4") -> None:
    """Turn the linear layers of the blocks into layers that are packed as soon as their weights are loaded."""
    for module in language.model.layers.modules():
        if type(module) is nn.Linear:
            # The class changes in place, so that other references to the module stay valid.
            module.__class__ = _LAYERS[kind]
            module.requires_grad_(False)


def draw_weights(part: PreTrainedModel, place: Callable[[str], torch.device | str], dtype: torch.dtype) -> None:
    """Fill a part on the meta device with random weights, layer by layer, so that it is never in memory unpacked.

    place: module's name in the part -> its device. transformers' own initialisation draws the weights; those of packed
    layers have the same standard deviation.
    """
    std = float(getattr(part.config, "initializer_range", 0.02))
    for prefix, module in part.named_modules():
        device = place(f"{prefix}.")
        for name, parameter in list(module._parameters.items()):
            if parameter is None or not parameter.is_meta:
                continue
            drawn = torch.zeros(parameter.shape, device=device, dtype=dtype)
            if isinstance(module, PackedLinear) and name == "weight":
                module.pack(drawn.normal_(0.0, std))
            else:
                module._parameters[name] = nn.Parameter(drawn, requires_grad=parameter.requires_grad)
        if not isinstance(module, PackedLinear):
            part._init_weights(module)
    part.tie_weights()


_LAYERS: Final = {"nf4": Nf4Linear, "int8": Int8Linear}


def require_quantising(device: torch.device | str) -> None:
    """Raise UserError if bitsandbytes is missing or does not work on this device."""
    try:
        _bitsandbytes().functional.quantize_4bit(torch.zeros(BLOCK, device=device), quant_type="nf4")
    except ImportError as error:
        raise UserError(
            f'model.sa2va.quantise="nf4" needs bitsandbytes, which cannot be imported ({_first_line(error)}); install '
            'it with pip install "bitsandbytes>=0.49,<0.51", or set model.sa2va.quantise=None '
            "(in a call: leave --quantise away)"
        ) from error
    except Exception as error:  # a missing CUDA library raises different exceptions in different versions
        raise UserError(
            f"bitsandbytes does not work on {device} ({_first_line(error)}): it has no library for CUDA "
            f"{torch.version.cuda}, the one of this torch, or cannot load it. `python -m bitsandbytes` says more; "
            "install another version of it or of torch, or set model.sa2va.quantise=None "
            "(in a call: leave --quantise away)"
        ) from error


def _bitsandbytes() -> Any:
    with without_hub_kernels():
        import bitsandbytes

    return bitsandbytes


def _is_packed(parameter: Tensor) -> bool:
    return parameter.dtype == torch.uint8


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
