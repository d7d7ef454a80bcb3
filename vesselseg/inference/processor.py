"""Processor: tokenizer, chat template and image view sizes, which turn images and questions into model input."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from vesselseg.dataset.image_views import ImageViews
from vesselseg.dataset.prompts import chat_template
from vesselseg.dataset.tokens import ConversationTokens
from vesselseg.models.sa2va_config import Sa2VAConfig

MAX_LENGTH = 8192  # tokens of one conversation; twelve tiles and a thumbnail take 3,328


@dataclass(frozen=True)
class Processor:
    """Shared by training, prediction and export."""

    views: ImageViews
    tokens: ConversationTokens
    tokens_per_tile: int

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, new tokens included."""
        return self.tokens.tokenizer


def processor_for(
    config: Sa2VAConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int = MAX_LENGTH,
    max_tiles: int | None = None,
) -> Processor:
    """The processor of a model. max_tiles: limit of tiles per image, at most the model's own."""
    tokens = ConversationTokens(tokenizer, chat_template(config.template), max_length)
    return Processor(views_for(config, max_tiles), tokens, config.tokens_per_tile)


def views_for(config: Sa2VAConfig, max_tiles: int | None = None) -> ImageViews:
    """The view sizes of a model. max_tiles: limit of tiles per image, at most the model's own."""
    limit = config.max_dynamic_patch if config.dynamic_image_size else 1
    return ImageViews(
        tile_size=config.force_image_size,
        sam_size=int(config.grounding_config["image_size"]),
        min_tiles=config.min_dynamic_patch,
        max_tiles=min(max_tiles or limit, limit),
        use_thumbnail=config.use_thumbnail,
    )
