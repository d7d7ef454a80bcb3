"""Activations of one micro-batch on one GPU, in bytes.

Encoders, mask decoder, losses and transformers' own decoder layer run on the meta device, where allocations are
counted. The fused decoder layer calls Triton kernels, which need a GPU: its activations are added up from shapes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vesselseg.losses.total import TotalLoss, standard_arguments
from vesselseg.models.encoding import trains
from vesselseg.models.fused_decoder import FUSED
from vesselseg.models.internvl import TILES_AT_ONCE, encode_patches
from vesselseg.models.lora import Lora
from vesselseg.models.sam2_grounding import IMAGES_AT_ONCE, PROMPT_DIM, ImageFeatures
from vesselseg.training.memory_plan.images import Images
from vesselseg.training.memory_plan.live_bytes import Held, held_by
from vesselseg.training.memory_plan.setup import Setup
from vesselseg.training.memory_plan.shapes import Shapes

# Copies of the packed embeddings before the decoder (text rows, concatenated, reordered), and after the final norm.
COPIES_OF_HIDDEN = 4


@dataclass(frozen=True)
class Layer:
    """Bytes of one decoder layer for a micro-batch. kept: until its backward pass; at_work: peak of its forward and
    backward pass, kept ones included. input: kept if the layer is recomputed."""

    kept: int
    at_work: int
    input: int


@dataclass(frozen=True)
class Activations:
    """Bytes of one micro-batch on one GPU."""

    encoding: int  # peak while encoding, features included
    features: int  # outputs of the encoders, kept until the backward pass
    masks: int  # peak of mask decoder and losses
    logits: int  # of the language model
    hidden: int  # the decoder's input and output
    layer: Layer


def activations_of(setup: Setup, shapes: Shapes, images: Images) -> Activations:
    """Activations of one micro-batch that contains the longest conversation. Losses of the user's own do not count."""
    count = setup.schedule.micro_batch
    tokens, objects = images.tokens_of(count), images.objects_of(count)
    size = setup.bytes_per_weight / 2  # the model on the meta device is in bf16
    encoding, features = encoding_bytes(setup, shapes, count, images.tiles * count)
    answers = max(1, round(images.answer_tokens * count))
    loss = tuple(sorted(standard_arguments(setup.values["model"].get("loss")).items()))
    counts = _objects_per_image(objects, count, images.most_objects)
    seen = Seen(stored=setup.store is not None, whole=setup.stage == 3)
    masks, logits = _masks(shapes, counts, answers, (images.height, images.width), loss, seen)
    hidden = COPIES_OF_HIDDEN * 2 * tokens * int(shapes.text.hidden_size)
    fused = setup.fused and shapes.text.model_type in FUSED
    layer = _fused_layer(setup, shapes, tokens) if fused else _plain_layer(shapes, tokens)
    unpacked = _unpacked(shapes) if setup.quantised else 0
    return Activations(
        encoding=int(size * encoding),
        features=int(size * features) + _view_bytes(setup, shapes, count),
        masks=int(size * masks),
        logits=int(size * logits),
        hidden=int(size * hidden),
        layer=Layer(int(size * layer.kept), int(size * layer.at_work) + unpacked, int(size * layer.input)),
    )


def _objects_per_image(objects: int, images: int, most: int) -> tuple[int, ...]:
    """Objects of each image: the maximum for one, the rest evenly distributed over the others."""
    left, others = objects - most, images - 1
    return (most, *(left * (number + 1) // others - left * number // others for number in range(others)))


def _view_bytes(setup: Setup, shapes: Shapes, images: int) -> int:
    """Bytes of the square views if a mask head reads them: stored pixels, or values in the weights' type."""
    grounding = shapes.model.grounding
    size = 1 if setup.store is not None else setup.bytes_per_weight
    return images * 3 * grounding.image_size**2 * size if grounding.sees_view else 0


@dataclass(frozen=True)
class Seen:
    """How masks are computed. stored: from stored features. whole: the vessel head is not recomputed."""

    stored: bool
    whole: bool


def encoding_bytes(setup: Setup, shapes: Shapes, images: int, tiles: int) -> tuple[int, int]:
    """(peak while encoding, features) in bytes for bf16.

    Both are proportional to images and tiles, so one of each is run. Frozen encoders process a few at a time.
    """
    tile, image = _one_tile(shapes), _one_image(shapes)
    left = tiles * tile.left, images * image.left
    at_once = not shapes.encoders_frozen or setup.stage == 3  # partitioned weights are gathered once
    patches = _in_pieces(tile, tiles, tiles if at_once else TILES_AT_ONCE)
    features = _in_pieces(image, images, images if at_once else IMAGES_AT_ONCE)
    return max(patches, left[0] + features), sum(left)


def _in_pieces(one: Held, count: int, at_once: int) -> int:
    """Peak for `count` inputs; in pieces, that of the last piece, or of the concatenation of all outputs."""
    if count <= at_once:
        return count * one.peak
    return max((count - at_once) * one.left + at_once * one.peak, 2 * count * one.left)


@functools.lru_cache(maxsize=8)
def _one_tile(shapes: Shapes) -> Held:
    model, side = shapes.model, shapes.model.config.force_image_size
    pixels = _empty(1, 3, side, side)

    def encode() -> tuple[Tensor]:
        patches = encode_patches(model.vision_model, model.projector, pixels)
        return (patches if trains(model.projector) else model.projector(patches),)

    return _encoded(shapes, encode)


@functools.lru_cache(maxsize=8)
def _one_image(shapes: Shapes) -> Held:
    grounding = shapes.model.grounding
    pixels = _empty(1, 3, grounding.image_size, grounding.image_size)

    def encode() -> tuple[Tensor, ...]:
        features = grounding.encode(pixels)
        return features.embedding, features.stride_8, features.stride_4

    return _encoded(shapes, encode)


def _encoded(shapes: Shapes, encode: Callable[[], tuple[Tensor, ...]]) -> Held:
    """Forward, and backward if something trains; gradients of weights do not count."""
    forward, views = held_by(encode)
    learns = any(view.requires_grad for view in views)
    del views
    if not learns:
        return forward
    both, _ = held_by(lambda: torch.stack([view.sum() for view in encode() if view.requires_grad]).sum().backward())
    shapes.model.zero_grad(set_to_none=True)
    return Held(max(forward.peak, both.peak - both.left), forward.left)


@functools.lru_cache(maxsize=32)
def _masks(
    shapes: Shapes,
    counts: tuple[int, ...],
    answers: int,
    size: tuple[int, int],
    loss: tuple[tuple[str, Any], ...],
    seen: Seen,
) -> tuple[int, int]:
    """Peaks of (mask decoder and losses, logits of the answers), forward and backward. counts: objects per image."""
    model, hidden, objects = shapes.model, int(shapes.text.hidden_size), sum(counts)
    views = _features(shapes, len(counts), seen.stored)
    head = model.grounding.vessel_head
    if head is not None:
        head.at_once = None if seen.whole else head.options.at_once
    state = _empty(answers, hidden).requires_grad_()
    prompts = _empty(objects, PROMPT_DIM).requires_grad_()
    of_object = torch.zeros(objects, dtype=torch.int64, device="meta")
    labels = torch.zeros(answers, dtype=torch.int64, device="meta")
    masks = torch.zeros(objects, *size, dtype=torch.uint8, device="meta")
    batch: Any = SimpleNamespace(objects_per_image=(objects,), masks=(masks,))
    total = TotalLoss(**dict(loss))

    def learn() -> None:
        mask_logits = model.grounding.decode(views, prompts, of_object, counts)
        logits = model.new_tokens.logits(model.language_model.get_output_embeddings(), state)
        torch.stack(list(total(mask_logits, logits, labels, batch).values())).sum().backward()

    def answer() -> None:
        logits = model.new_tokens.logits(model.language_model.get_output_embeddings(), state)
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()

    both, alone = held_by(learn)[0], held_by(answer)[0]
    model.zero_grad(set_to_none=True)
    return max(0, both.peak - alone.peak), alone.peak


def _features(shapes: Shapes, images: int, stored: bool) -> ImageFeatures:
    grounding = shapes.model.grounding
    side, late = grounding.image_size, grounding.convolves_late
    wide = (PROMPT_DIM, PROMPT_DIM) if late else (PROMPT_DIM // 4, PROMPT_DIM // 8)
    view = torch.empty(images, 3, side, side, dtype=torch.uint8 if stored else torch.bfloat16, device="meta")
    return ImageFeatures(
        _empty(images, PROMPT_DIM, side // 16, side // 16),
        _empty(images, wide[0], side // 8, side // 8),
        _empty(images, wide[1], side // 4, side // 4),
        view if grounding.sees_view else None,
    )


@functools.lru_cache(maxsize=8)
def head_flops(shapes: Shapes) -> tuple[float, float]:
    """FLOPs of a vessel head's forward pass: (of an image, of each object in it), counted on the meta device."""
    head, features = shapes.model.grounding.vessel_head, _features(shapes, 1, stored=True)
    if head is None:
        return 0.0, 0.0

    def flops(objects: int) -> float:
        side = shapes.model.grounding.image_size
        coarse, tokens = _empty(objects, side // 4, side // 4), _empty(objects, PROMPT_DIM)
        levels = _empty(1, 32, side // 4, side // 4), _empty(1, 64, side // 8, side // 8), features.embedding
        image_of_object = torch.zeros(objects, dtype=torch.int64, device="meta")
        with FlopCounterMode(display=False) as counted:
            head(coarse, levels, tokens, features.view, image_of_object)
        return float(counted.get_total_flops())

    one, two = flops(1), flops(2)
    return 2 * one - two, two - one


@functools.lru_cache(maxsize=32)
def _plain_layer(shapes: Shapes, tokens: int) -> Layer:
    """Transformers' own layer with peft's adapters."""
    decoder = shapes.model.language_model.model
    layer = decoder.layers[0].train()
    width = int(getattr(shapes.text, "head_dim", None) or shapes.text.hidden_size // shapes.text.num_attention_heads)
    hidden = _empty(1, tokens, int(shapes.text.hidden_size)).requires_grad_()
    turns = _empty(1, tokens, width), _empty(1, tokens, width)

    def forward() -> Tensor:
        return layer(hidden, position_embeddings=turns, attention_mask=None)

    kept, outcome = held_by(forward)
    del outcome
    whole, _ = held_by(lambda: forward().sum().backward())
    layer.zero_grad(set_to_none=True)
    return Layer(kept.left, whole.peak, 2 * hidden.numel())


def _fused_layer(setup: Setup, shapes: Shapes, tokens: int) -> Layer:
    """`fused_decoder.FusedLayer` with Liger's kernels: two bytes per value and one per element of a dropout mask."""
    text = shapes.text
    hidden, inner = int(text.hidden_size), int(text.intermediate_size)
    keys = hidden // int(text.num_attention_heads) * int(text.num_key_value_heads)
    lora = Lora(**(setup.sa2va.get("lora") or {}))
    rank, dropout = lora.r, lora.dropout > 0
    attention = 2 * (
        hidden + hidden + 2 * keys + hidden + hidden
    )  # norm's output; q, k, v; attention's output, and its packed copy
    mlp = 2 * (hidden + hidden + 2 * inner)  # residual sum after attention, norm's output; gate, up
    adapters = 2 * 7 * rank + (3 * hidden + inner if dropout else 0)  # reduced inputs; dropout masks of four inputs
    # Backward of the last product: gate * up recomputed, its gradient, a masked copy; gradients of input and output.
    gradients = 2 * ((3 if dropout else 2) * inner + 3 * hidden)
    kept = attention + mlp + adapters
    return Layer(tokens * kept, tokens * (kept + gradients), tokens * 2 * hidden)


def _unpacked(shapes: Shapes) -> int:
    """The largest 4-bit matrix in bf16, twice: one is freed after the next is allocated."""
    return 2 * 2 * max(weight.numel for weight in shapes.weights if weight.in_4_bits)


def _empty(*shape: int) -> Tensor:
    return torch.empty(*shape, dtype=torch.bfloat16, device="meta")
