"""Merge LoRA adapters into the weights that they adapt, one weight at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

_BASE, _A, _B = ".base_layer.", ".lora_A.", ".lora_B."


def merged_weight(weight: Tensor, updates: Mapping[str, tuple[float, Tensor, Tensor]]) -> Tensor:
    """W + sum of scale * B A over the adapters by name (Hu et al. 2021), in W's type.

    weight: (out, in). updates: scale (alpha / r), A (r, in), B (out, r). The sum is computed in float32 and rounded
    once: in bf16, small updates of large weights would be lost.
    """
    merged = weight.detach().float()
    for scale, a, b in updates.values():
        merged = merged + scale * (b.detach().float() @ a.detach().float())
    return merged.to(weight.dtype)


class MergedState(Mapping[str, Tensor]):
    """A view of a state dict without adapters: a weight is merged when it is read.

    model: it determines the adapters' scales. state: its state dict, or a replacement where weights are partitioned.
    """

    def __init__(self, model: nn.Module, state: Mapping[str, Tensor] | None = None) -> None:
        self._state = model.state_dict() if state is None else state
        self._scales: dict[str, dict[str, float]] = {
            name: dict(module.scaling) for name, module in model.named_modules() if is_adapted(module)
        }
        self._names = {name.replace(_BASE, "."): name for name in self._state if _A not in name and _B not in name}

    def __getitem__(self, name: str) -> Tensor:
        weight, layer = self.plain(name), name.removesuffix(".weight")
        if layer == name or layer not in self._scales:
            return weight
        updates = {}
        for adapter, scale in self._scales[layer].items():
            a, b = (self._state[f"{layer}{part}{adapter}.weight"].to(weight.device) for part in (_A, _B))
            updates[adapter] = (scale, a, b)
        return merged_weight(weight, updates)

    def plain(self, name: str) -> Tensor:
        """The tensor without adapters, of the same shape and type."""
        return self._state[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def is_adapted(module: Any) -> bool:
    """Whether a module is one of peft's LoRA layers; found by its attributes, since peft need not be installed."""
    return hasattr(module, "lora_A") and hasattr(module, "get_base_layer")
