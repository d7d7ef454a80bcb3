"""SAM2 with built-in prompts for a few fixed phrases: square image -> one mask per phrase, without a language model.

For a fixed phrase the language model contributes one vector of 256 numbers per image. `PromptHead` replaces it by a
constant vector per phrase and, with a width above 0, a correction predicted from SAM2's own features.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from sam2.modeling.sam2_utils import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional

from vesselseg.models.prompted_config import PromptedSAM2Config
from vesselseg.models.sam2_grounding import PROMPT_DIM, ImageFeatures, SAM2Grounding

GRID = 8  # cells per side of the pooled features that the correction reads, for every image size
# Modules that single images need; the rest of SAM2 propagates masks through videos.
_KEPT = ("image_encoder", "no_mem_embed", "sam_prompt_encoder", "sam_mask_decoder")
_PUBLISHED, _OURS = "grounding_encoder.sam2_model.", "grounding.sam2."
POSITIONS = _OURS + "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"


class PromptHead(nn.Module):
    """Predicts the prompts of the phrases.

    base: (phrases, 256), the prompt of each phrase. width: channels of the correction; 0: no correction, the same
    prompts for every image. spread: (phrases, 256), scale of the correction, which starts at zero.
    """

    spread: Tensor

    def __init__(self, phrases: int, width: int = 0) -> None:
        super().__init__()
        self.width = width
        self.base = nn.Parameter(torch.zeros(phrases, PROMPT_DIM))
        if width:
            self.register_buffer("spread", torch.ones(phrases, PROMPT_DIM))
            self.norm = LayerNorm2d(PROMPT_DIM)
            self.narrow = nn.Conv2d(PROMPT_DIM, width, kernel_size=1)
            self.mix = nn.Conv2d(width, width, kernel_size=3, padding=1)
            self.correction = nn.Linear(width, phrases * PROMPT_DIM)
            nn.init.zeros_(self.correction.weight)
            nn.init.zeros_(self.correction.bias)

    def forward(self, cells: Tensor) -> Tensor:
        """cells: (images, 256, h, w), from `pool_features`. Returns prompts (images, phrases, 256)."""
        base = self.base.unsqueeze(0).expand(cells.shape[0], -1, -1)
        if not self.width:
            return base
        hidden = functional.gelu(self.narrow(self.norm(cells)))
        hidden = functional.gelu(self.mix(hidden)).mean(dim=(2, 3))  # (images, width)
        return base + self.spread * self.correction(hidden).unflatten(1, (-1, PROMPT_DIM))


def pool_features(embedding: Tensor) -> Tensor:
    """SAM2's embedding (images, 256, side / 16, side / 16), averaged over at most GRID x GRID equal cells."""
    size = int(embedding.shape[-1])
    return functional.avg_pool2d(embedding, size // math.gcd(size, GRID))


class PromptedSAM2(nn.Module):
    """`SAM2Grounding` and a `PromptHead`."""

    def __init__(self, config: PromptedSAM2Config, grounding: SAM2Grounding, head: PromptHead) -> None:
        super().__init__()
        self.config = config
        self.grounding = grounding
        self.prompt_head = head

    def forward(self, squares: Tensor) -> Tensor:
        """squares: (images, 3, side, side), normalised. Returns logits (images, phrases, h, h); h is the grounding's
        `mask_side`.
        """
        features = self.grounding.encode(squares)
        prompts = self.prompts(features)
        phrases = prompts.shape[1]
        image_of_prompt = torch.arange(squares.shape[0], device=squares.device).unsqueeze(1).expand(-1, phrases)
        logits = self.grounding.decode(features, prompts.flatten(0, 1), image_of_prompt.reshape(-1))
        return logits.unflatten(0, (-1, phrases))

    def prompts(self, features: ImageFeatures) -> Tensor:
        """(images, phrases, 256), what SAM2 is prompted with."""
        prompts: Tensor = self.prompt_head(pool_features(features.embedding))
        return prompts

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return self.prompt_head.base.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.prompt_head.base.device


def build_prompted(config: PromptedSAM2Config) -> PromptedSAM2:
    """The model with random weights, without SAM2's memory."""
    grounding = without_memory(SAM2Grounding(config.grounding_config))
    return PromptedSAM2(config, grounding, PromptHead(len(config.phrases), config.head_width))


def without_memory(grounding: SAM2Grounding) -> SAM2Grounding:
    """Remove from SAM2, in place, what only videos need; returns the same object."""
    sam2 = grounding.sam2
    for name in {name.split(".")[0] for name in sam2.state_dict()} - set(_KEPT):
        delattr(sam2, name)
    return grounding


def place(model: PromptedSAM2, device: torch.device | str, dtype: torch.dtype) -> PromptedSAM2:
    """Move the model, in place. SAM2's position matrix stays in float32: casting it to bf16 and back would round it."""
    exact = positions_matrix(model)
    model.to(device=device, dtype=dtype)
    set_positions_matrix(model, exact)
    return model


def positions_matrix(model: PromptedSAM2) -> Tensor:
    """The random matrix (2, 128) of SAM2's positional encoding (random Fourier features, Tancik et al. 2020)."""
    matrix: Tensor = model.grounding.sam2.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    return matrix


def set_positions_matrix(model: PromptedSAM2, exact: Tensor) -> None:
    """Set that matrix on the model's device, in float32, also if the other weights are in bf16."""
    layer = model.grounding.sam2.sam_prompt_encoder.pe_layer
    layer.positional_encoding_gaussian_matrix = exact.to(model.device, torch.float32)


def published_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of `PromptedSAM2` with SAM2's weights under the names of Sa2VA's published folders."""
    return {
        _PUBLISHED + name.removeprefix(_OURS) if name.startswith(_OURS) else name: value
        for name, value in state.items()
    }


def own_names(stream: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The inverse of `published_names`, tensor by tensor."""
    for name, tensor in stream:
        yield (_OURS + name.removeprefix(_PUBLISHED) if name.startswith(_PUBLISHED) else name), tensor
