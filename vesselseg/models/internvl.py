"""Vision tower, projector and language model of InternVL, from transformers' own classes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel
from transformers.models.internvl.modeling_internvl import InternVLVisionModel

from vesselseg.models.encoding import encode_images
from vesselseg.models.sa2va_config import Sa2VAConfig

TILES_AT_ONCE = 8  # of a frozen tower: enough to keep a GPU busy, with less memory than the language model needs


class TileProjector(nn.Module):
    """Patch features of a tile to language-model tokens: LayerNorm, Linear, GELU, Linear (Sa2VA's ``mlp1``)."""

    def __init__(self, vision_hidden: int, text_hidden: int, downsample_ratio: float) -> None:
        super().__init__()
        self.downsample_ratio = downsample_ratio
        shuffled = vision_hidden * round(1 / downsample_ratio) ** 2
        self.norm = nn.LayerNorm(shuffled)
        self.linear_1 = nn.Linear(shuffled, text_hidden)
        self.linear_2 = nn.Linear(text_hidden, text_hidden)

    def forward(self, patches: Tensor) -> Tensor:
        """patches: (tiles, tokens, channels), pixel-shuffled. Returns (tiles, tokens, text_hidden)."""
        return self.linear_2(nn.functional.gelu(self.linear_1(self.norm(patches))))

    def shuffle(self, patches: Tensor) -> Tensor:
        """The vision tower's patches (tiles, side * side, vision_hidden) as `forward` takes them, without weights."""
        side = int(patches.shape[1] ** 0.5)
        return pixel_shuffle(patches.unflatten(1, (side, side)), self.downsample_ratio).flatten(1, 2)


def pixel_shuffle(patches: Tensor, ratio: float) -> Tensor:
    """InternVL's pixel shuffle 'v2' (Chen et al. 2024, arXiv 2404.16821): neighbouring patches move into the channels.

    It reduces the number of tokens per tile, from 1024 to 256 at ratio 0.5.

    patches: (tiles, height, width, channels). Returns (tiles, height * ratio, width * ratio, channels / ratio**2).
    """
    factor = round(1 / ratio)
    tiles, height, width, channels = patches.shape
    # Channels of a block of patches are ordered row by row, as the published weights of the projector expect.
    grid = patches.reshape(tiles, height // factor, factor, width // factor, factor, channels)
    return grid.permute(0, 1, 3, 2, 4, 5).reshape(tiles, height // factor, width // factor, channels * factor**2)


def build_vision_tower(config: Sa2VAConfig, attention: str) -> InternVLVisionModel:
    """InternViT with random weights."""
    return InternVLVisionModel(config.vision(attention))


def build_language_model(config: Sa2VAConfig, attention: str) -> PreTrainedModel:
    """One of `LANGUAGE_MODELS` with random weights. Its tables are the base's; `NewTokens` has the new tokens' rows."""
    text = config.text(attention)
    # Not AutoModelForCausalLM.from_config, which builds in the type that the configuration names.
    classes: Any = MODEL_FOR_CAUSAL_LM_MAPPING
    return classes[type(text)](text)


def encode_patches(vision: InternVLVisionModel, projector: TileProjector, tiles: Tensor) -> Tensor:
    """tiles: (tiles, 3, side, side), normalised. Returns (tiles, tokens per tile, channels), before the projector."""

    def encode(some: Tensor) -> tuple[Tensor]:
        patches = vision(pixel_values=some).last_hidden_state[:, 1:]  # without the class token
        return (projector.shuffle(patches),)

    return encode_images(vision, encode, tiles, TILES_AT_ONCE)[0]
