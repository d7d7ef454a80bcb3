"""The whole forward pass of Sa2VA on one screen: Batch -> mask logits and answer logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.internvl.modeling_internvl import InternVLVisionModel

from vesselseg.data.batch import Batch
from vesselseg.models.internvl import TileProjector, encode_tiles
from vesselseg.models.new_tokens import NewTokens
from vesselseg.models.packing import Packed, pack, read_padded
from vesselseg.models.sa2va_config import Sa2VAConfig
from vesselseg.models.sam2_grounding import ImageFeatures, SAM2Grounding
from vesselseg.models.seg_projector import SegProjector


@dataclass
class Output:
    """mask_logits: (all objects, side / 4, side / 4), image after image, before sigmoid.

    answer_logits: (answer tokens, vocabulary), next-token logits at every position that has a label.
    answer_labels: (answer tokens,) int64.
    """

    mask_logits: Tensor
    answer_logits: Tensor
    answer_labels: Tensor


class Sa2VA(nn.Module):
    """InternVL reads image and question; its hidden state at every [SEG] prompts SAM2 for one mask."""

    def __init__(
        self,
        config: Sa2VAConfig,
        *,
        vision_model: InternVLVisionModel,
        projector: TileProjector,
        language_model: PreTrainedModel,
        new_tokens: NewTokens,
        seg_projector: SegProjector,
        grounding: SAM2Grounding,
        image_token_id: int,
    ) -> None:
        super().__init__()
        self.config = config
        self.vision_model = vision_model
        self.projector = projector
        self.language_model = language_model
        self.new_tokens = new_tokens
        self.seg_projector = seg_projector
        self.grounding = grounding
        self.image_token_id = image_token_id
        # Another way through the decoder, (embeddings, lengths) -> hidden, both packed; None: transformers' own.
        self.decoder: Callable[[Tensor, tuple[int, ...]], Tensor] | None = None
        self.drawn_at_random: tuple[str, ...] = ()  # name prefixes of parts that no weight file was read for
        self.changed_by_load: tuple[str, ...] = ()  # frozen entries in which a loaded checkpoint differs from the base

    def forward(self, batch: Batch) -> Output:
        """One image encoding per image, however many objects its conversation names."""
        tiles = encode_tiles(self.vision_model, self.projector, batch.tiles.to(self.dtype))
        conversations = self.pack(batch.input_ids, batch.labels)
        hidden = self.read(conversations, tiles)
        features = self.grounding.encode(batch.sam_images.to(self.dtype))
        prompts = self.prompts(hidden, conversations)
        counts = torch.tensor(batch.objects_per_image, device=prompts.device)
        image_of_object = torch.repeat_interleave(torch.arange(len(counts), device=prompts.device), counts)
        mask_logits = self.grounding.decode(features, prompts, image_of_object)
        return Output(mask_logits, *self.answers(hidden, conversations))

    def pack(self, rows: Sequence[Tensor], labels: Sequence[Tensor] | None = None) -> Packed:
        """Conversations (tokens,) in main memory -> what the model reads, on its device."""
        return pack(rows, labels, self.image_token_id, self.new_tokens.seg_id).to(self.device)

    def read(self, conversations: Packed, tile_tokens: Tensor) -> Tensor:
        """Run the language model over conversations.

        tile_tokens: (tiles, tokens per tile, hidden), in the order in which the image placeholders occur. Returns
        (all tokens, hidden), after the final norm, conversation after conversation.
        """
        table = self.language_model.get_input_embeddings()
        text = self.new_tokens.embed(table, conversations.text_ids, conversations.host_text_ids)
        embeddings = torch.cat([text, tile_tokens.flatten(0, 1).to(text.dtype)])[conversations.order]
        if torch.is_grad_enabled() and not embeddings.requires_grad:
            embeddings.requires_grad_(True)  # a reentrant checkpoint passes no gradient on where its input has none
        if self.decoder is not None:
            return self.decoder(embeddings, conversations.lengths)
        return read_padded(self.language_model.model, embeddings, conversations.lengths)

    def prompts(self, hidden: Tensor, conversations: Packed) -> Tensor:
        """Prompt vectors (objects, 256) from the places where [SEG] is the input token, in their order."""
        return self.seg_projector(hidden[conversations.seg_places])

    def answers(self, hidden: Tensor, conversations: Packed) -> tuple[Tensor, Tensor]:
        """Next-token logits only where a label asks for them: the vocabulary is large, the answer short."""
        head = self.language_model.get_output_embeddings()
        return self.new_tokens.logits(head, hidden[conversations.answer_places]), conversations.answer_labels

    def encode(self, sam_images: Tensor) -> ImageFeatures:
        """SAM2's features of square views (images, 3, side, side)."""
        return self.grounding.encode(sam_images.to(self.dtype))

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights, read from a part that is never quantised."""
        return self.seg_projector.linear_1.weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.seg_projector.linear_1.weight.device
