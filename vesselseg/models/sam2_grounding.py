"""SAM2 through the `sam2` package: square image -> features; features and prompt vectors -> mask logits.

SAM2: Ravi et al. 2024, arXiv 2408.00714; the sizes are those of the YAML files of the `sam2` package. The prompt is
passed as in Sa2VA (Yuan et al. 2025, arXiv 2501.04001): the language model's vector is appended to the sparse
embeddings of a padding point.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from sam2.modeling.backbones.hieradet import Hiera
from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
from sam2.modeling.position_encoding import PositionEmbeddingSine
from sam2.modeling.sam.transformer import RoPEAttention
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, nn
from torch.func import functional_call

from vesselseg.errors import UserError
from vesselseg.models.encoding import encode_images, trains
from vesselseg.models.fine_masks import FineMasks, upscaled_embedding
from vesselseg.models.vessel_head import VesselHead
from vesselseg.models.vessel_head_options import read_options

PROMPT_DIM = 256  # width of SAM2's prompt embeddings, in every variant
IMAGES_AT_ONCE = 4  # of a frozen encoder: enough to keep a GPU busy, with less memory than decoding needs later

TRUNKS: dict[str, dict[str, Any]] = {
    "tiny": {
        "embed_dim": 96,
        "num_heads": 1,
        "stages": [1, 2, 7, 2],
        "global_att_blocks": [5, 7, 9],
        "window_pos_embed_bkg_spatial_size": [7, 7],
    },
    "small": {
        "embed_dim": 96,
        "num_heads": 1,
        "stages": [1, 2, 11, 2],
        "global_att_blocks": [7, 10, 13],
        "window_pos_embed_bkg_spatial_size": [7, 7],
    },
    "base_plus": {"embed_dim": 112, "num_heads": 2},
    "large": {
        "embed_dim": 144,
        "num_heads": 2,
        "stages": [2, 6, 36, 4],
        "global_att_blocks": [23, 33, 43],
        "window_pos_embed_bkg_spatial_size": [7, 7],
        "window_spec": [8, 4, 16, 8],
    },
}


@dataclass
class ImageFeatures:
    """What SAM2's image encoder computes for each image, and the image itself.

    embedding: (images, 256, side / 16, side / 16), with the no-memory embedding added.
    stride_8: (images, 256, side / 8, side / 8). stride_4: (images, 256, side / 4, side / 4). If the mask decoder's two
    convolutions for these levels are frozen, they are applied already, and the levels have 64 and 32 channels.
    view: (images, 3, side, side), normalised float or uint8 pixels, if the masks depend on it too
    (`SAM2Grounding.sees_view`); else None.
    """

    embedding: Tensor
    stride_8: Tensor
    stride_4: Tensor
    view: Tensor | None = None

    def select(self, images: Tensor) -> ImageFeatures:
        """The features of the images with these indices, (n,) int64, in that order, without views."""
        return ImageFeatures(self.embedding[images], self.stride_8[images], self.stride_4[images])


@dataclass
class DecodedObjects:
    """Masks, and what SAM2's memory needs besides.

    logits: as returned by `SAM2Grounding.decode`. tokens: (objects, 256), the mask tokens that predicted them.
    scores: (objects, 1), SAM2's logits that the object is in the image; 0 if SAM2 does not contribute to the masks.
    """

    logits: Tensor
    tokens: Tensor
    scores: Tensor


class SAM2Grounding(nn.Module):
    """SAM2 prompted by a vector instead of a click; `sam2` holds every weight under SAM2's own names.

    config: as in `build_sam2`, and at most one of `fine_masks`, a kind of `FineMasks`, and `vessel_head`, options of
    `VesselHead`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.image_size = int(config["image_size"])
        # transformers 5 builds models on the meta device, where SAM2's constructor cannot read its numbers
        with torch.device("cpu") if torch.empty(0).is_meta else nullcontext():
            self.sam2 = build_sam2(config)
        if config.get("fine_masks") and config.get("vessel_head") is not None:
            raise UserError("sam2.fine_masks and sam2.vessel_head both refine SAM2's answer; set one of them to None")
        self.fine_masks = FineMasks(config["fine_masks"]) if config.get("fine_masks") else None
        self.vessel_head = None
        if config.get("vessel_head") is not None:
            self.vessel_head = VesselHead(read_options(config["vessel_head"]), self.image_size)

    @property
    def sees_view(self) -> bool:
        """Whether masks depend on the pixels of the square view, not only on its features."""
        return self.vessel_head is not None or (self.fine_masks is not None and self.fine_masks.view is not None)

    @property
    def mask_side(self) -> int:
        """Side of the masks that `decode` returns."""
        if self.vessel_head is not None:
            return self.vessel_head.side
        return self.image_size // (4 if self.fine_masks is None else 2)

    @property
    def square_side(self) -> int:
        """Side of the square to which masks are resized before the image's size: SAM2's, as in the published code.

        The vessel head's masks have the image's own resolution already, which resizing to a larger square would blur.
        """
        return self.image_size if self.vessel_head is None else self.mask_side

    @property
    def uses_sam2(self) -> bool:
        """Whether SAM2 contributes to the masks. If not, in ablations of the vessel head, there is no memory either."""
        return self.vessel_head is None or self.vessel_head.options.sam2

    def encode(self, images: Tensor) -> ImageFeatures:
        """images: (images, 3, side, side), normalised. The image encoder runs without gradients while it is frozen."""
        with _without_positions(self.sam2.image_encoder.neck):
            levels = encode_images(self.sam2.image_encoder, self._encode, images, IMAGES_AT_ONCE)
        stride_4, stride_8, stride_16 = levels
        # SAM2 adds this embedding to an image without memory: (1, 1, 256) -> (1, 256, 1, 1).
        embedding = stride_16 + self.sam2.no_mem_embed.transpose(1, 2).unsqueeze(-1)
        return ImageFeatures(embedding, stride_8, stride_4, images if self.sees_view else None)

    def _encode(self, images: Tensor) -> tuple[Tensor, ...]:
        # The neck adds its levels in float32, also for images in bf16.
        levels = self.sam2.image_encoder(images)["backbone_fpn"]
        stride_4, stride_8, stride_16 = (level.to(images.dtype) for level in levels)
        if self.convolves_late:
            return stride_4, stride_8, stride_16
        decoder = self.sam2.sam_mask_decoder
        return decoder.conv_s0(stride_4), decoder.conv_s1(stride_8), stride_16

    @property
    def convolves_late(self) -> bool:
        """Whether the two convolutions for the high-resolution levels train, and so are part of decoding."""
        decoder = self.sam2.sam_mask_decoder
        return trains(decoder.conv_s0) or trains(decoder.conv_s1)

    def decode(
        self,
        features: ImageFeatures,
        prompts: Tensor,
        image_of_prompt: Tensor,
        objects_per_image: Sequence[int] | None = None,
    ) -> Tensor:
        """One mask per prompt: the candidate with the highest predicted IoU of SAM2's three.

        prompts: (objects, 256). image_of_prompt: (objects,) int64, index into the features. objects_per_image: see
        `VesselHead.forward`. Returns (objects, mask_side, mask_side): logits before sigmoid. Unlike in SAM2, a low
        object score does not suppress the mask.
        """
        return self.decode_objects(features, prompts, image_of_prompt, objects_per_image=objects_per_image).logits

    def decode_objects(
        self,
        features: ImageFeatures,
        prompts: Tensor | None,
        image_of_object: Tensor,
        drawn_from: tuple[ImageFeatures, Tensor] | None = None,
        objects_per_image: Sequence[int] | None = None,
    ) -> DecodedObjects:
        """`decode`, and what SAM2's memory needs besides the mask.

        prompts: None if only the memory defines the objects. drawn_from: features, and each object's index into them,
        for the vessel head: those of the frame itself, not conditioned on memory. Default: the same features.
        """
        features = self._convolved(features)
        seen, image_of_seen = drawn_from or (features, image_of_object)
        if drawn_from is not None:
            seen = self._convolved(seen)
        if self.vessel_head is not None and not self.uses_sam2:
            if prompts is None:
                raise ValueError("without SAM2 (vessel_head.sam2=False) there is no memory; every frame needs prompts")
            # SAM2's logits are empty here: nothing reads them.
            decoded = DecodedObjects(prompts.new_empty(len(prompts), 0, 0), prompts, prompts.new_zeros(len(prompts), 1))
        else:
            # Select even if there is one prompt per image: with partitioned weights (ZeRO-3) all processes must build
            # the same graph.
            decoded = self._ask_sam2(features.select(image_of_object), prompts, features.view, image_of_object)
        if self.vessel_head is None:
            return decoded
        levels = seen.stride_4, seen.stride_8, seen.embedding
        logits = self.vessel_head(
            decoded.logits, levels, decoded.tokens, seen.view, image_of_seen, objects_per_image=objects_per_image
        )
        return replace(decoded, logits=logits)

    def _convolved(self, features: ImageFeatures) -> ImageFeatures:
        """The features after the mask decoder's two convolutions for the high-resolution levels."""
        if not self.convolves_late:
            return features
        decoder = self.sam2.sam_mask_decoder
        stride_4, stride_8 = decoder.conv_s0(features.stride_4), decoder.conv_s1(features.stride_8)
        return ImageFeatures(features.embedding, stride_8, stride_4, features.view)

    def _ask_sam2(
        self, features: ImageFeatures, prompts: Tensor | None, view: Tensor | None, image_of_object: Tensor
    ) -> DecodedObjects:
        """SAM2's best candidate per object, refined by fine masks. features: one entry per object, not per image."""
        decoder = self.sam2.sam_mask_decoder
        sparse, dense = self._prompt_embeddings(prompts, image_of_object.shape[0])
        with upscaled_embedding(decoder) as kept:
            masks, predicted_iou, tokens, scores = decoder(
                image_embeddings=features.embedding,
                image_pe=self._image_positions().to(sparse.dtype),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
                repeat_image=False,
                high_res_features=[features.stride_4, features.stride_8],
            )
        # masks: (objects, 3, side / 4, side / 4); predicted_iou: (objects, 3); tokens: (objects, 3, 256)
        best = torch.arange(masks.shape[0], device=masks.device), predicted_iou.argmax(dim=1)
        logits = masks[best]
        if self.fine_masks is not None:
            logits = self.fine_masks(logits, kept[0], tokens[best], view, image_of_object)
        return DecodedObjects(logits, tokens[best], scores)

    def _prompt_embeddings(self, prompts: Tensor | None, objects: int) -> tuple[Tensor, Tensor]:
        """Sparse (objects, 2 or 3, 256): two padding points and the prompt. Dense (objects, 256, h, w): no mask.

        A padding point has no position, so its embedding is `not_a_point_embed` alone. SAM2's prompt encoder gives the
        same (it pads one point by another), but multiplies the position by a matrix that must be float32.
        """
        encoder = self.sam2.sam_prompt_encoder
        sparse = encoder.not_a_point_embed.weight.expand(objects, 2, -1)
        if prompts is not None:
            sparse = torch.cat([sparse, prompts.unsqueeze(1)], dim=1)
        dense = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        return sparse, dense.expand(objects, -1, *encoder.image_embedding_size)

    def _image_positions(self) -> Tensor:
        """Positional encoding (1, 256, side / 16, side / 16) in float32, also if the weights are bf16."""
        encoder = self.sam2.sam_prompt_encoder
        matrix = encoder.pe_layer.positional_encoding_gaussian_matrix
        if matrix.dtype == torch.float32:  # the plain call, which torch can trace
            return encoder.pe_layer(encoder.image_embedding_size).unsqueeze(0)
        exact = {"positional_encoding_gaussian_matrix": matrix.float()}
        return functional_call(encoder.pe_layer, exact, (encoder.image_embedding_size,)).unsqueeze(0)


class _NoPositions(nn.Module):
    def forward(self, level: Tensor) -> Tensor:
        return level.new_empty(0)


@contextmanager
def _without_positions(neck: FpnNeck) -> Iterator[None]:
    """Skip the neck's position encodings, 67 MB for an image of side 1024; only video needs them."""
    kept = neck.position_encoding
    neck.position_encoding = _NoPositions()
    try:
        yield
    finally:
        neck.position_encoding = kept


def move_buffers(module: nn.Module) -> None:
    """Put buffers where the weights are: those that no file holds stay on the CPU when transformers places weights."""
    device = next(module.parameters()).device
    for part in module.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.device != device:
                part._buffers[name] = buffer.to(device)


def build_sam2(config: dict[str, Any]) -> SAM2Base:
    """SAM2 with random weights. config: `variant`, `version`, `image_size`, optional `trunk` sizes."""
    variant, version = config["variant"], str(config.get("version", "2.0"))
    if variant not in TRUNKS or version not in ("2.0", "2.1"):
        raise ValueError(f"sam2 variant {variant!r} version {version!r}; expected {', '.join(TRUNKS)} and 2.0 or 2.1")
    if int(config["image_size"]) % 32:
        raise ValueError(f"sam2 image_size is {config['image_size']}; it must be a multiple of 32")
    newer = version == "2.1"
    # Arguments as in the YAML files of the `sam2` package, sam2_hiera_*.yaml and sam2.1_hiera_*.yaml.
    return SAM2Base(
        image_encoder=_image_encoder({**TRUNKS[variant], **config.get("trunk", {})}),
        memory_attention=_memory_attention(),
        memory_encoder=_memory_encoder(),
        num_maskmem=7,
        image_size=int(config["image_size"]),
        sigmoid_scale_for_mem_enc=20.0,
        sigmoid_bias_for_mem_enc=-10.0,
        use_mask_input_as_output_without_sam=True,
        directly_add_no_mem_embed=True,
        use_high_res_features_in_sam=True,
        multimask_output_in_sam=True,
        iou_prediction_use_sigmoid=True,
        use_obj_ptrs_in_encoder=True,
        add_tpos_enc_to_obj_ptrs=newer,
        proj_tpos_enc_in_obj_ptrs=newer,
        use_signed_tpos_enc_to_obj_ptrs=newer,
        no_obj_embed_spatial=newer,
        only_obj_ptrs_in_the_past_for_eval=True,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
        fixed_no_obj_ptr=True,
        multimask_output_for_tracking=True,
        use_multimask_token_for_obj_ptr=True,
        multimask_min_pt_num=0,
        multimask_max_pt_num=1,
        use_mlp_for_obj_ptr_proj=True,
    )


def _image_encoder(sizes: dict[str, Any]) -> ImageEncoder:
    trunk = Hiera(**{key: tuple(value) if isinstance(value, list) else value for key, value in sizes.items()})
    neck = FpnNeck(
        position_encoding=_sine_positions(256),
        d_model=PROMPT_DIM,
        backbone_channel_list=trunk.channel_list,
        fpn_top_down_levels=[2, 3],
        fpn_interp_model="nearest",
    )
    return ImageEncoder(trunk=trunk, neck=neck, scalp=1)


def _memory_attention() -> MemoryAttention:
    shared = {"rope_theta": 10000.0, "feat_sizes": [64, 64], "embedding_dim": 256, "num_heads": 1}
    layer = MemoryAttentionLayer(
        activation="relu",
        dim_feedforward=2048,
        dropout=0.1,
        pos_enc_at_attn=False,
        self_attention=RoPEAttention(**shared, downsample_rate=1, dropout=0.1),
        cross_attention=RoPEAttention(**shared, rope_k_repeat=True, downsample_rate=1, dropout=0.1, kv_in_dim=64),
        d_model=256,
        pos_enc_at_cross_attn_keys=True,
        pos_enc_at_cross_attn_queries=False,
    )
    return MemoryAttention(d_model=256, pos_enc_at_input=True, layer=layer, num_layers=4)


def _memory_encoder() -> MemoryEncoder:
    block = CXBlock(dim=256, kernel_size=7, padding=3, layer_scale_init_value=1e-6, use_dwconv=True)
    return MemoryEncoder(
        out_dim=64,
        position_encoding=_sine_positions(64),
        mask_downsampler=MaskDownSampler(kernel_size=3, stride=2, padding=1),
        fuser=Fuser(block, num_layers=2),
    )


def _sine_positions(features: int) -> PositionEmbeddingSine:
    """SAM2's own positional encoding, without its cache, which would fill GPU memory while the model is built."""
    return PositionEmbeddingSine(
        num_pos_feats=features, normalize=True, scale=None, temperature=10000, warmup_cache=False
    )
