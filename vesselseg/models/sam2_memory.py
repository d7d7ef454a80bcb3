"""SAM2's memory over the frames of a cine run: masks of prompted keyframes are propagated to the following frames.

The memory is SAM2's (Ravi et al., "SAM 2: Segment Anything in Images and Videos", arXiv 2408.00714, section 4),
computed by the methods of the `sam2` package; a keyframe's prompt is the language model's vector, as in Sa2VA.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vesselseg.models.sam2_grounding import DecodedObjects, ImageFeatures, SAM2Grounding

# SAM2 gives keyframes no temporal encoding, so it cannot distinguish old from new ones: older ones become plain frames.
KEYFRAMES_KEPT = 1
FRAMES_WITH_POINTERS = 15  # SAM2's max_obj_ptrs_in_encoder, less the keyframe's


class MaskMemory:
    """The memory of one cine run; frames are given once, in order, and memory holds a bounded number of them.

    frames: length of the run. A keyframe is decoded from its prompts alone, exactly as a single image; other frames
    from memory alone: the last keyframe, the last six frames, and object pointers of the last fifteen.
    """

    def __init__(self, grounding: SAM2Grounding, frames: int) -> None:
        self.grounding = grounding
        self.frames = frames
        self.outputs: dict[str, dict[int, dict[str, Any]]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
        self._next = 0
        self._objects = 0

    def step(self, features: ImageFeatures, prompts: Tensor | None = None) -> Tensor:
        """The next frame's mask logits, as `SAM2Grounding.decode` returns them.

        features: of this frame; or, for several runs in parallel, of one frame of each, as many as there are objects.
        prompts: (objects, 256) on a keyframe, None on others; the first frame must be a keyframe.
        A low object score does not suppress a mask. As in SAM2, it decides if memory holds a pointer to the object.
        """
        if prompts is None and not self.outputs["cond_frame_outputs"]:
            raise ValueError("the first frame of a cine run needs prompts: there is nothing to remember")
        if prompts is not None and self._objects not in (0, len(prompts)):
            raise ValueError(f"{len(prompts)} prompts on frame {self._next}, {self._objects} on the keyframe before")
        if prompts is not None:
            self._objects = len(prompts)
        frame = features, self._image_of_object(features)
        features = self._per_object(features)
        plain = features.embedding - self.grounding.sam2.no_mem_embed.reshape(1, -1, 1, 1)
        if prompts is None:
            features = replace(features, embedding=self._conditioned(plain))
        numbers = torch.arange(self._objects, device=plain.device)
        # The vessel head was trained on features of single images, so it reads those without memory.
        decoded = self.grounding.decode_objects(features, prompts, numbers, drawn_from=frame)
        self._remember(plain, decoded, keyframe=prompts is not None)
        self._next += 1
        return decoded.logits

    def _conditioned(self, plain: Tensor) -> Tensor:
        """Condition features (objects, 256, h, w), without the no-memory embedding, on the memory of their objects."""
        positions = self.grounding.sam2.image_encoder.neck.position_encoding(plain)
        with _autocast(plain):
            conditioned: Tensor = self.grounding.sam2._prepare_memory_conditioned_features(
                frame_idx=self._next,
                is_init_cond_frame=False,
                current_vision_feats=[_as_tokens(plain)],
                current_vision_pos_embeds=[_as_tokens(positions.to(plain.dtype))],
                feat_sizes=[plain.shape[-2:]],
                output_dict=self.outputs,
                num_frames=self.frames,
            )
        return conditioned.to(plain.dtype)

    def _remember(self, plain: Tensor, decoded: DecodedObjects, keyframe: bool) -> None:
        sam2 = self.grounding.sam2
        size = (self.grounding.image_size, self.grounding.image_size)
        masks = functional.interpolate(
            decoded.logits.float().unsqueeze(1), size=size, mode="bilinear", align_corners=False
        )
        with _autocast(plain):
            features, positions = sam2._encode_new_memory(
                current_vision_feats=[_as_tokens(plain)],
                feat_sizes=[plain.shape[-2:]],
                pred_masks_high_res=masks.to(plain.dtype),
                object_score_logits=decoded.scores,
                is_mask_from_pts=keyframe,
            )
            visible = (decoded.scores > 0).to(decoded.tokens.dtype)  # (objects, 1)
            pointer = visible * sam2.obj_ptr_proj(decoded.tokens) + (1 - visible) * sam2.no_obj_ptr  # (objects, 256)
        kept = {"maskmem_features": features, "maskmem_pos_enc": positions, "obj_ptr": pointer}
        self.outputs["cond_frame_outputs" if keyframe else "non_cond_frame_outputs"][self._next] = kept
        self._forget()

    def _forget(self) -> None:
        """Keep what SAM2 will read: older keyframes become other frames; those lose their features, then pointers."""
        keyframes, others = self.outputs["cond_frame_outputs"], self.outputs["non_cond_frame_outputs"]
        while len(keyframes) > KEYFRAMES_KEPT:
            oldest = min(keyframes)
            others[oldest] = keyframes.pop(oldest)
        for frame in [frame for frame in others if frame <= self._next - FRAMES_WITH_POINTERS]:
            del others[frame]
        for frame, kept in others.items():
            if frame <= self._next + 1 - self.grounding.sam2.num_maskmem:
                kept["maskmem_features"] = kept["maskmem_pos_enc"] = None

    def _image_of_object(self, features: ImageFeatures) -> Tensor:
        """(objects,) int64: index 0 for all if there is one frame, else each object's own frame."""
        numbers = torch.arange(self._objects, device=features.embedding.device)
        return numbers if len(features.embedding) > 1 else torch.zeros_like(numbers)

    def _per_object(self, features: ImageFeatures) -> ImageFeatures:
        def repeated(level: Tensor) -> Tensor:
            return level.expand(self._objects, *level.shape[1:])

        view = None if features.view is None else repeated(features.view)
        embedding, stride_8, stride_4 = map(repeated, (features.embedding, features.stride_8, features.stride_4))
        return ImageFeatures(embedding, stride_8, stride_4, view)


def _as_tokens(level: Tensor) -> Tensor:
    """(objects, channels, h, w) -> (h * w, objects, channels)."""
    return level.flatten(2).permute(2, 0, 1)


def single(features: ImageFeatures, number: int) -> ImageFeatures:
    """The features of one of several images, with its view."""
    view = None if features.view is None else features.view[number : number + 1]
    place = torch.tensor([number], device=features.embedding.device)
    return replace(features.select(place), view=view)


def has_memory(grounding: SAM2Grounding) -> bool:
    """Whether this SAM2 has a memory; a distilled model has none."""
    return hasattr(grounding.sam2, "memory_encoder")


def memory_trained(grounding: SAM2Grounding) -> bool:
    """Whether the memory's weights were trained, here or in the file from which they were read.

    The layer scales of its encoder all start at the same value (1e-6) and differ after one step of any training.
    """
    if not has_memory(grounding):
        return False
    scales = [layer.gamma for layer in grounding.sam2.memory_encoder.fuser.layers]
    return any(bool((scale != scale[0]).any()) for scale in scales)


def _autocast(like: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Autocast for models in bf16 or fp16: SAM2 multiplies temporal encodings in float32 by weights in that type."""
    if like.dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(like.device.type, like.dtype)
