"""The model of a config on the meta device: shapes of all weights, without values."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights

from vesselseg.inference.processor import Processor, processor_for
from vesselseg.models.build import build_model
from vesselseg.models.checkpoints.base_folder import BaseFolder, read_base_folder
from vesselseg.models.sa2va import Sa2VA
from vesselseg.training.checkpoint import checkpoint_elements

BLOCKS = "language_model.model.layers."
EMBEDDING = "language_model.model.embed_tokens."


@dataclass(frozen=True)
class Weight:
    """One parameter. is_encoder: not needed with stored features."""

    name: str
    numel: int
    trainable: bool
    is_matrix: bool
    is_encoder: bool

    @property
    def is_embedding(self) -> bool:
        """Whether it is the frozen embedding table of the language model."""
        return self.name.startswith(EMBEDDING) and not self.trainable

    @property
    def in_4_bits(self) -> bool:
        """Whether it is quantised if the config says so."""
        return self.name.startswith(BLOCKS) and self.is_matrix and not self.trainable


@dataclass(frozen=True, eq=False)
class Shapes:
    """A model without values, compared by identity.

    in_checkpoint: elements in a checkpoint.
    """

    model: Sa2VA
    processor: Processor
    weights: tuple[Weight, ...]
    in_checkpoint: int

    @property
    def trainable(self) -> int:
        """Trainable elements."""
        return sum(weight.numel for weight in self.weights if weight.trainable)

    @property
    def text(self) -> Any:
        """The language model's sizes."""
        return self.model.config.text()

    @property
    def layers(self) -> int:
        """Number of layers of the language model."""
        return int(self.text.num_hidden_layers)

    @property
    def encoders_frozen(self) -> bool:
        """Whether no weight of vision tower and SAM2's image encoder trains."""
        parts = self.model.vision_model, self.model.grounding.sam2.image_encoder
        return not any(parameter.requires_grad for part in parts for parameter in part.parameters())

    def largest(self, trainable: bool | None = None) -> int:
        """Elements of the largest weight: of all, of the trainable, or of the frozen ones."""
        return max(w.numel for w in self.weights if trainable is None or w.trainable == trainable)


def shapes_of(sa2va: Mapping[str, Any]) -> Shapes:
    """The model that build_model builds from these arguments. Raises WeightsError for an invalid base folder."""
    kept = {key: sa2va.get(key) for key in ("base", "sam2", "lora", "trainable", "max_tiles", "random_weights")}
    return _shapes(json.dumps(kept, sort_keys=True, default=list))


@functools.lru_cache(maxsize=8)
def _shapes(arguments: str) -> Shapes:
    kept = json.loads(arguments)
    random_weights = kept.pop("random_weights")
    folder = read_base_folder(kept["base"])
    with init_empty_weights():
        model = build_model(
            **kept, fused=False, random_weights=True, construction=contextlib.nullcontext, dtype=torch.bfloat16
        )
    model.to("meta")
    if not random_weights and not (kept["sam2"] or {}).get("checkpoint") and not _own_sam2(folder):
        model.randomly_initialised = ("grounding.",)
    encoders = {id(parameter) for part in model.encoders().values() for parameter in part.parameters()}
    weights = tuple(
        Weight(name, parameter.numel(), parameter.requires_grad, parameter.dim() > 1, id(parameter) in encoders)
        for name, parameter in model.named_parameters()
    )
    processor = processor_for(model.config, folder.tokenizer, max_tiles=kept["max_tiles"])
    return Shapes(model, processor, weights, checkpoint_elements(model))


def _own_sam2(folder: BaseFolder) -> bool:
    return folder.layout == "sa2va"
