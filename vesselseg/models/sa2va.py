"""The whole forward pass of Sa2VA on one screen: Batch -> mask logits and answer logits.

Sa2VA (Yuan et al. 2025, arXiv 2501.04001): InternVL answers a question about an image with a [SEG] token per object,
and the hidden state of each [SEG] prompts SAM2's mask decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.profiler import record_function
from transformers import PreTrainedModel
from transformers.models.internvl.modeling_internvl import InternVLVisionModel

from vesselseg.dataset.batch import Batch, EncodedViews
from vesselseg.models.encoding import trains
from vesselseg.models.internvl import TileProjector, encode_patches
from vesselseg.models.new_tokens import NewTokens
from vesselseg.models.packing import Packed, join_branches, pack, read_padded
from vesselseg.models.sa2va_config import Sa2VAConfig
from vesselseg.models.sam2_grounding import ImageFeatures, SAM2Grounding
from vesselseg.models.seg_projector import SegProjector


@dataclass
class Output:
    """mask_logits: (all objects, h, h), image after image, before sigmoid; h is `SAM2Grounding.mask_side`.

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
        # Replaces transformers' decoder: (embeddings, lengths) -> hidden states, both packed. None: not replaced.
        self.decoder: Callable[[Tensor, tuple[int, ...]], Tensor] | None = None
        self.embedding_on_host = False  # whether the embedding table moves to main memory once all weights are loaded
        self.randomly_initialised: tuple[str, ...] = ()  # name prefixes of parts for which no weight file was read
        self.changed_by_load: tuple[str, ...] = ()  # frozen entries in which a loaded checkpoint differs from the base

    def forward(self, batch: Batch) -> Output:
        """Each image is encoded once, however many objects its conversation names."""
        with record_function("encoders"):
            views = batch.encoded or self.encode_views(batch.tiles, batch.sam_images)
            tile_tokens = self.tile_tokens(views.patches)  # (tiles, tokens per tile, hidden)
        with record_function("language model"):
            conversations = self.pack(batch.input_ids, batch.labels)
            hidden = self.read(conversations, tile_tokens)  # (all tokens, hidden)
            answers = self.answers(hidden, conversations)
        with record_function("mask decoder"):
            prompts = self.prompts(hidden, conversations)  # (objects, 256)
            # Stored features hold the pixels of the view as well; see `decode`.
            sam_images = batch.sam_images if batch.encoded is None else None
            mask_logits = self.decode(views, sam_images, prompts, batch.objects_per_image)
        return Output(mask_logits, *answers)

    def encode_views(self, tiles: Tensor, sam_images: Tensor) -> EncodedViews:
        """Everything that frozen weights compute from images alone; `EncodedViews` says what depends on what trains.

        tiles: (tiles, 3, tile, tile). sam_images: (images, 3, side, side). Both normalised.
        """
        features = self.grounding.encode(sam_images.to(self.dtype))
        return EncodedViews(self.encode_tiles(tiles), features.embedding, features.stride_8, features.stride_4)

    def encode_tiles(self, tiles: Tensor) -> Tensor:
        """The language model's half of `encode_views`: `EncodedViews.patches`."""
        patches = encode_patches(self.vision_model, self.projector, tiles.to(self.dtype))
        return patches if trains(self.projector) else self.projector(patches)

    def encoders(self) -> dict[str, nn.Module]:
        """The frozen modules that only `encode_views` uses, by name. Stored features replace them."""
        decoder = self.grounding.sam2.sam_mask_decoder
        modules = {"vision_model": self.vision_model, "image_encoder": self.grounding.sam2.image_encoder}
        modules |= {"projector": self.projector, "conv_s0": decoder.conv_s0, "conv_s1": decoder.conv_s1}
        return {name: module for name, module in modules.items() if not trains(module)}

    def tile_tokens(self, patches: Tensor) -> Tensor:
        """`EncodedViews.patches` -> image tokens of the language model: (tiles, tokens per tile, hidden)."""
        return self.projector(patches) if trains(self.projector) else patches

    def decode(
        self, views: EncodedViews, sam_images: Tensor | None, prompts: Tensor, objects_per_image: Sequence[int]
    ) -> Tensor:
        """Mask logits as in `Output`.

        prompts: (objects, 256), image after image. sam_images: as in `encode_views`, for mask heads that also read the
        pixels; None with stored features, which then hold the pixels.
        """
        view = None
        if self.grounding.sees_view:
            view = views.view if sam_images is None else sam_images.to(self.dtype)
        features = ImageFeatures(views.embedding, views.stride_8, views.stride_4, view)
        # Counted in main memory: reading counts from a GPU would make the CPU wait for it.
        image_of_object = [image for image, count in enumerate(objects_per_image) for _ in range(count)]
        places = torch.tensor(image_of_object, device=self.device)
        return self.grounding.decode(features, prompts, places, objects_per_image)

    def pack(self, rows: Sequence[Tensor], labels: Sequence[Tensor] | None = None) -> Packed:
        """Conversations (tokens,) in main memory -> what the model reads, on its device."""
        return pack(rows, labels, self.image_token_id, self.new_tokens.seg_id).to(self.device)

    def pack_branches(self, conversations: Sequence[Sequence[Tensor]]) -> Packed:
        """The same for several conversations about each image: their common beginning is read once."""
        rows, branches = zip(*(join_branches(of_image, self.new_tokens.seg_id) for of_image in conversations))
        packed = self.pack(rows)
        return packed if all(len(of_row) == 2 for of_row in branches) else replace(packed, branches=branches)

    def read(self, conversations: Packed, tile_tokens: Tensor) -> Tensor:
        """Run the language model over conversations.

        tile_tokens: (tiles, tokens per tile, hidden), in the order in which the image placeholders occur. Returns
        (all tokens, hidden), after the final norm, conversation after conversation.
        """
        embeddings = self.embed(conversations, tile_tokens)
        if torch.is_grad_enabled() and not embeddings.requires_grad:
            embeddings.requires_grad_(True)  # a reentrant checkpoint passes no gradient on where its input has none
        if self.decoder is not None and conversations.branches is None:
            return self.decoder(embeddings, conversations.lengths)
        return read_padded(self.language_model.model, embeddings, conversations.lengths, conversations.branches)

    def embed(self, conversations: Packed, tile_tokens: Tensor) -> Tensor:
        """Input of the decoder: (all tokens, hidden), with tile tokens at the image placeholders."""
        table = self.language_model.get_input_embeddings()
        text = self.new_tokens.embed(table, conversations.text_ids, conversations.host_text_ids)
        # Text tokens, then image tokens, then put into the order of the conversations.
        return torch.cat([text, tile_tokens.flatten(0, 1).to(text.dtype)])[conversations.order]

    def prompts(self, hidden: Tensor, conversations: Packed) -> Tensor:
        """Prompt vectors (objects, 256) from the positions of [SEG] in the input, in their order."""
        return self.seg_projector(hidden[conversations.seg_places])

    def answers(self, hidden: Tensor, conversations: Packed) -> tuple[Tensor, Tensor]:
        """Next-token logits at positions with a label only, and the labels: logits of all would be large."""
        head = self.language_model.get_output_embeddings()
        return self.new_tokens.logits(head, hidden[conversations.answer_places]), conversations.answer_labels

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights, read from a part that is never quantised."""
        return self.seg_projector.linear_1.weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.seg_projector.linear_1.weight.device
