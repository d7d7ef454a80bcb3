"""Frozen linear layers of the language model's blocks in 4 or 8 bits.

4 bits, for training and predicting: NF4 with quantised scales (Dettmers 2023, QLoRA), packed and unpacked by
bitsandbytes. 8 bits, for predicting: whole numbers and a scale per output, on any device. The layer, its name in a
checkpoint and the adapter beside it stay what they are. Head, embeddings, vision tower and SAM2 are not quantised.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from vesselseg.errors import UserError

KINDS: Final = (None, "nf4", "int8")
BLOCK: Final = 64  # weights that share a scale
NF4_BYTES: Final = 0.5 + 1 / BLOCK + 4 / (256 * BLOCK)  # per weight: 4 bits, a byte for each scale, a float for 256


class PackedLinear(nn.Linear):
    """A linear layer whose frozen weight is stored in fewer bits.

    Until `pack` is called it is the linear layer that it was made of, as a rule on the meta device.
    """

    scales: Any = None  # no buffer, so that no cast of the model reaches it

    def pack(self, weight: Tensor) -> None:
        """Take a dense weight (out, in), on the device and in the type that are to be computed in."""
        raise NotImplementedError

    def _apply(self, fn: Any, recurse: bool = True) -> PackedLinear:
        super()._apply(fn, recurse)
        if self.scales is not None:
            moved = self.scales.to(self.weight.device)  # bitsandbytes' QuantState moves itself and returns nothing
            self.scales = self.scales if moved is None else moved
        return self


class Nf4Linear(PackedLinear):
    """Two weights to a byte: `weight` is (weights / 2, 1) uint8, `scales` bitsandbytes' QuantState."""

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

    The scale is applied to the output: products of whole numbers up to 127 lose nothing in bf16.
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
    """Unpacks the weight anew for the backward pass instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: Nf4Linear) -> Tensor:
        ctx.layer = layer
        return functional.linear(inputs, frozen_weight(layer), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] @ frozen_weight(ctx.layer), None


def frozen_weight(layer: nn.Module) -> Tensor:
    """The dense weight (out, in) of a linear layer in the type that it computes in; one in 4 bits is unpacked."""
    if not isinstance(layer, Nf4Linear) or layer.scales is None:
        return layer.weight  # type: ignore[return-value]
    return _bitsandbytes().functional.dequantize_4bit(layer.weight, layer.scales)


def number_of_weights(parameter: Tensor) -> int:
    """Elements of a parameter: partitioned (ZeRO-3) ones whole, packed ones as many as they were."""
    return int(getattr(parameter, "ds_numel", 2 * parameter.numel() if _is_packed(parameter) else parameter.numel()))


def bytes_per_weight(kind: str | None, dtype: torch.dtype) -> float:
    """Of a linear layer in the blocks, scales included where they count."""
    return {"nf4": NF4_BYTES, "int8": 1.0}.get(kind or "", float(dtype.itemsize))


def mark_for_quantising(language: PreTrainedModel, kind: str = "nf4") -> None:
    """Make the linear layers of the blocks ready to be packed as soon as their weights come."""
    for module in language.model.layers.modules():
        if type(module) is nn.Linear:
            module.__class__ = _LAYERS[kind]
            module.requires_grad_(False)


def draw_weights(part: PreTrainedModel, place: Callable[[str], torch.device | str], dtype: torch.dtype) -> None:
    """Random weights for a part on the meta device, layer after layer, so that it is never whole before it is packed.

    place: module's name in the part -> its device. transformers' own initialisation draws them; those of a packed layer
    have the same spread.
    """
    spread = float(getattr(part.config, "initializer_range", 0.02))
    for prefix, module in part.named_modules():
        device = place(f"{prefix}.")
        for name, parameter in list(module._parameters.items()):
            if parameter is None or not parameter.is_meta:
                continue
            drawn = torch.zeros(parameter.shape, device=device, dtype=dtype)
            if isinstance(module, PackedLinear) and name == "weight":
                module.pack(drawn.normal_(0.0, spread))
            else:
                module._parameters[name] = nn.Parameter(drawn, requires_grad=parameter.requires_grad)
        if not isinstance(module, PackedLinear):
            part._init_weights(module)
    part.tie_weights()


_LAYERS: Final = {"nf4": Nf4Linear, "int8": Int8Linear}


def require_quantising(device: torch.device | str) -> None:
    """Raise UserError where bitsandbytes is missing or cannot work on this device."""
    try:
        _bitsandbytes().functional.quantize_4bit(torch.zeros(BLOCK, device=device), quant_type="nf4")
    except ImportError as error:
        raise UserError(
            f'model.sa2va.quantise="nf4" needs bitsandbytes, which cannot be imported ({_first_line(error)}); install '
            'it with pip install "bitsandbytes>=0.49,<0.51", or set model.sa2va.quantise=None '
            "(in a call: leave --quantise away)"
        ) from error
    except Exception as error:  # a library that was not found shows as whatever the first call runs into
        raise UserError(
            f"bitsandbytes does not work on {device} ({_first_line(error)}): it has no library for CUDA "
            f"{torch.version.cuda}, the one of this torch, or cannot load it. `python -m bitsandbytes` says more; "
            "install another version of it or of torch, or set model.sa2va.quantise=None "
            "(in a call: leave --quantise away)"
        ) from error


def mute_kernel_hint() -> None:
    """Before bitsandbytes is imported: on CPUs that compute in bf16 it says to install a package, for products with
    weights in 4 bits that nothing here asks it for. Its other messages stay.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_no_kernel_hint)


def _is_no_kernel_hint(record: logging.LogRecord) -> bool:
    return "`pip install kernels`" not in str(record.msg)


def _bitsandbytes() -> Any:
    mute_kernel_hint()
    import bitsandbytes

    return bitsandbytes


def _is_packed(parameter: Tensor) -> bool:
    return parameter.dtype == torch.uint8


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
