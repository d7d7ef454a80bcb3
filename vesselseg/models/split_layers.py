"""A language model's decoder layers spread over several GPUs: for predicting with models that one of them cannot hold.

The first GPU holds everything else (vision tower, tables, SAM2) and as many layers as make all GPUs hold alike. Layers
run one after another, each where it lies; accelerate's hooks carry the hidden states from GPU to GPU.
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
    """main: where everything but decoder layers lies. layers: where each decoder layer lies; empty: there too."""

    main: torch.device
    layers: tuple[torch.device, ...]

    def place(self, name: str) -> torch.device:
        """Where the weight of this name in a Sa2VA lies."""
        layer = _LAYER.match(name)
        return self.layers[int(layer.group(1))] if layer and self.layers else self.main

    def connect(self, decoder: Any) -> None:
        """Have hidden states carried to each layer of a decoder, and back to its last norm."""
        for layer, device in zip(decoder.layers, self.layers):
            add_hook_to_module(layer, AlignDevicesHook(execution_device=device))
        add_hook_to_module(decoder.norm, AlignDevicesHook(execution_device=self.main))


def split_layers(
    vision: torch.nn.Module, language: Any, devices: Sequence[torch.device], dtype: torch.dtype, quantise: str | None
) -> LayerSplit:
    """Shares of the decoder layers by bytes. vision, language: as they are built, also without memory (meta device)."""
    per_weight = bytes_per_weight(quantise, dtype)
    layer = sum(weight.numel() for weight in language.model.layers[0].parameters()) * per_weight
    others = [*vision.parameters(), *language.get_input_embeddings().parameters()]
    others += language.get_output_embeddings().parameters()
    count = len(language.model.layers)
    on_main = sum(weight.numel() for weight in others) * dtype.itemsize
    share = (on_main + count * layer) / len(devices)
    first = min(count, max(0, round((share - on_main) / layer)))
    rest = [devices[1 + number * (len(devices) - 1) // (count - first)] for number in range(count - first)]
    return LayerSplit(devices[0], (*[devices[0]] * first, *rest))
