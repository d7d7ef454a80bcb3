"""Decoder layers distributed over several GPUs, to predict with models that do not fit into one of them.

The first GPU holds everything else (vision tower, tables, SAM2) and as many layers as balance the memory of all GPUs.
Layers run one after another, each on its GPU; accelerate's hooks move the hidden states between GPUs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module

from vesselseg.models.quantised import bytes_per_weight

_LAYER = re.compile(r"^language_model\.model\.layers\.(\d+)\.")


@dataclass(frozen=True)
class LayerSplit:
    """main: device of everything but the decoder layers. layers: device of each decoder layer; empty: all on main."""

    main: torch.device
    layers: tuple[torch.device, ...]

    def place(self, name: str) -> torch.device:
        """Device of the weight with this name in a Sa2VA."""
        layer = _LAYER.match(name)
        return self.layers[int(layer.group(1))] if layer and self.layers else self.main

    def connect(self, decoder: Any) -> None:
        """Add hooks that move hidden states to the device of each layer of a decoder, and back to its last norm."""
        for layer, device in zip(decoder.layers, self.layers):
            add_hook_to_module(layer, AlignDevicesHook(execution_device=device))
        add_hook_to_module(decoder.norm, AlignDevicesHook(execution_device=self.main))


def split_layers(
    vision: torch.nn.Module, language: Any, devices: Sequence[torch.device], dtype: torch.dtype, quantise: str | None
) -> LayerSplit:
    """Distribute the decoder layers by their size in bytes. vision, language: may be on the meta device."""
    per_weight = bytes_per_weight(quantise, dtype)
    layer = sum(weight.numel() for weight in language.model.layers[0].parameters()) * per_weight
    others = [*vision.parameters(), *language.get_input_embeddings().parameters()]
    others += language.get_output_embeddings().parameters()
    count = len(language.model.layers)
    on_main = sum(weight.numel() for weight in others) * dtype.itemsize
    # Every GPU should hold the same number of bytes; the first already holds `on_main`.
    share = (on_main + count * layer) / len(devices)
    first = min(count, max(0, round((share - on_main) / layer)))
    rest = [devices[1 + number * (len(devices) - 1) // (count - first)] for number in range(count - first)]
    return LayerSplit(devices[0], (*[devices[0]] * first, *rest))
