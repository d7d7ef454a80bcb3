"""Frozen linear layers of the language model's blocks in 4 bits: NF4 with quantised scales (Dettmers 2023, QLoRA).

bitsandbytes packs and unpacks; the layer, its name in a checkpoint and the adapter beside it stay what they are. Head,
embeddings, vision tower and SAM2 are not quantised.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from vesselseg.errors import UserError

KINDS: Final = (None, "nf4")
BLOCK: Final = 64  # weights that share a scale
NF4_BYTES: Final = 0.5 + 1 / BLOCK + 4 / (256 * BLOCK)  # per weight: 4 bits, a byte for each scale, a float for 256


class Nf4Linear(nn.Linear):
    """A linear layer whose frozen weight is packed, two weights to a byte: `weight` is (weights / 2, 1) uint8.

    Until `pack` is called it is the linear layer that it was made of, as a rule on the meta device.
    """

    scales: Any = None  # bitsandbytes' QuantState; no buffer, so that no cast of the model reaches it

    def pack(self, weight: Tensor) -> None:
        """Take a dense weight (out, in), on the device and in the type that are to be computed in."""
        packed, self.scales = _bitsandbytes().functional.quantize_4bit(
            weight.contiguous(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
        )
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs: (..., in). Returns (..., out)."""
        return _FrozenLinear.apply(inputs, self)

    def _apply(self, fn: Any, recurse: bool = True) -> Nf4Linear:
        super()._apply(fn, recurse)
        if self.scales is not None:
            self.scales.to(self.weight.device)
        return self


class _FrozenLinear(torch.autograd.Function):
    """Unpacks the weight anew for the backward pass instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: Nf4Linear) -> Tensor:
        ctx.layer = layer
        return functional.linear(inputs, frozen_weight(layer), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] @ frozen_weight(ctx.layer), None


def frozen_weight(layer: nn.Module) -> Tensor:
    """The dense weight (out, in) of a linear layer in the type that it computes in; a 4-bit one is unpacked."""
    if not isinstance(layer, Nf4Linear) or layer.scales is None:
        return layer.weight  # type: ignore[return-value]
    return _bitsandbytes().functional.dequantize_4bit(layer.weight, layer.scales)


def number_of_weights(parameter: Tensor) -> int:
    """Elements of a parameter: partitioned (ZeRO-3) ones whole, packed ones as many as they were."""
    return int(getattr(parameter, "ds_numel", 2 * parameter.numel() if _is_packed(parameter) else parameter.numel()))


def mark_for_quantising(language: PreTrainedModel) -> None:
    """Make the linear layers of the blocks ready to be packed as soon as their weights come."""
    for module in language.model.layers.modules():
        if type(module) is nn.Linear:
            module.__class__ = Nf4Linear
            module.requires_grad_(False)


def draw_weights(part: PreTrainedModel, device: torch.device | str, dtype: torch.dtype) -> None:
    """Random weights for a part on the meta device, layer after layer, so that it is never whole before it is packed.

    transformers' own initialisation draws them; those of a 4-bit layer have the same spread.
    """
    spread = float(getattr(part.config, "initializer_range", 0.02))
    for module in part.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None or not parameter.is_meta:
                continue
            drawn = torch.zeros(parameter.shape, device=device, dtype=dtype)
            if isinstance(module, Nf4Linear) and name == "weight":
                module.pack(drawn.normal_(0.0, spread))
            else:
                module._parameters[name] = nn.Parameter(drawn, requires_grad=parameter.requires_grad)
        if not isinstance(module, Nf4Linear):
            part._init_weights(module)
    part.tie_weights()


def require_quantising(device: torch.device | str) -> None:
    """Raise UserError where bitsandbytes is missing or cannot work on this device."""
    try:
        _bitsandbytes().functional.quantize_4bit(torch.zeros(BLOCK, device=device), quant_type="nf4")
    except ImportError as error:
        raise UserError(
            f'model.sa2va.quantise="nf4" needs bitsandbytes, which cannot be imported ({_first_line(error)}); install '
            'it with pip install "bitsandbytes>=0.49,<0.51", or set model.sa2va.quantise=None'
        ) from error
    except Exception as error:  # a library that was not found shows as whatever the first call runs into
        raise UserError(
            f"bitsandbytes does not work on {device} ({_first_line(error)}): it has no library for CUDA "
            f"{torch.version.cuda}, the one of this torch, or cannot load it. `python -m bitsandbytes` says more; "
            "install another version of it or of torch, or set model.sa2va.quantise=None"
        ) from error


def _bitsandbytes() -> Any:
    import bitsandbytes

    return bitsandbytes


def _is_packed(parameter: Tensor) -> bool:
    return parameter.dtype == torch.uint8


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
