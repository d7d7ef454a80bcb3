"""Bytes of everything between the weights and the loss, on one GPU.

Encoders, mask decoder, losses and transformers' own decoder layer run on the meta device and are counted. The fused
decoder layer calls Triton kernels, which need a GPU: what it keeps is added up from shapes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from vesselseg.data.batch import EncodedViews
from vesselseg.engine.memory_plan.images import Images
from vesselseg.engine.memory_plan.live_bytes import Held, held_by
from vesselseg.engine.memory_plan.setup import Setup
from vesselseg.engine.memory_plan.shapes import Shapes
from vesselseg.losses.total import TotalLoss
from vesselseg.models.sam2_grounding import PROMPT_DIM, ImageFeatures

# Copies of the packed embeddings on the way into the decoder (text rows, joined, put in order), and out of the norm.
COPIES_OF_HIDDEN = 4


@dataclass(frozen=True)
class Layer:
    """Bytes of one decoder layer for a micro-batch. kept: until its backward pass; at_work: while it is computed
    forward and backward, what it keeps included. input: what it keeps if it is computed again."""

    kept: int
    at_work: int
    input: int


@dataclass(frozen=True)
class Activations:
    """Bytes of one micro-batch on one GPU.

    encoding: the encoders at work, their features included. features: what of them stays until the backward pass.
    masks: mask decoder and losses at work, logits: the language model's logits. hidden: the decoder's input and output.
    layer: one decoder layer.
    """

    encoding: int
    features: int
    masks: int
    logits: int
    hidden: int
    layer: Layer


def activations_of(setup: Setup, shapes: Shapes, images: Images) -> Activations:
    """Of one micro-batch with its longest conversation."""
    count = setup.schedule.micro_batch
    tokens, objects = images.tokens_of(count), images.objects_of(count)
    size = setup.bytes_per_weight / 2  # the model on the meta device is a bf16 one
    encoding, features = _encoding(shapes, count, images.tiles * count)
    answers = max(1, round(images.answer_tokens * count))
    loss = tuple(sorted((setup.values["model"].get("loss") or {}).items()))
    masks, logits = _masks(shapes, count, objects, answers, (images.height, images.width), loss)
    hidden = COPIES_OF_HIDDEN * 2 * tokens * int(shapes.text.hidden_size)
    layer = _fused_layer(setup, shapes, tokens) if setup.fused else _plain_layer(shapes, tokens)
    unpacked = _unpacked(shapes) if setup.quantised else 0
    return Activations(
        encoding=int(size * encoding.peak),
        features=int(size * features),
        masks=int(size * masks),
        logits=int(size * logits),
        hidden=int(size * hidden),
        layer=Layer(int(size * layer.kept), int(size * layer.at_work) + unpacked, int(size * layer.input)),
    )


def encoding_bytes(shapes: Shapes, images: int, tiles: int) -> int:
    """Of the encoders at work on so many images and tiles, in bf16."""
    return _encoding(shapes, images, tiles)[0].peak


@functools.lru_cache(maxsize=32)
def _encoding(shapes: Shapes, images: int, tiles: int) -> tuple[Held, int]:
    """(while encoding, bytes of the features)"""
    model = shapes.model
    tile, side = model.config.force_image_size, model.grounding.image_size
    pixels = _empty(tiles, 3, tile, tile), _empty(images, 3, side, side)

    def encode() -> EncodedViews:
        with torch.set_grad_enabled(not shapes.encoders_frozen):
            return model.encode_views(*pixels)

    if shapes.encoders_frozen:
        held, views = held_by(encode)
        return held, held.left

    def encode_and_back() -> None:
        views = encode()
        parts = views.patches, views.embedding, views.stride_8, views.stride_4
        torch.stack([part.sum() for part in parts if part.requires_grad]).sum().backward()

    forward, views = held_by(encode)
    del views
    whole, _ = held_by(encode_and_back)
    model.zero_grad(set_to_none=True)
    return Held(max(forward.peak, whole.peak - whole.left), 0), forward.left


@functools.lru_cache(maxsize=32)
def _masks(
    shapes: Shapes, images: int, objects: int, answers: int, size: tuple[int, int], loss: tuple[tuple[str, Any], ...]
) -> tuple[int, int]:
    """(mask decoder and losses, logits of the answers) at work, forward and backward."""
    model, hidden = shapes.model, int(shapes.text.hidden_size)
    views = _features(shapes, images)
    state = _empty(answers, hidden).requires_grad_()
    prompts = _empty(objects, PROMPT_DIM).requires_grad_()
    of_object = torch.zeros(objects, dtype=torch.int64, device="meta")
    labels = torch.zeros(answers, dtype=torch.int64, device="meta")
    masks = torch.zeros(objects, *size, dtype=torch.uint8, device="meta")
    batch: Any = SimpleNamespace(objects_per_image=(objects,), masks=(masks,))
    total = TotalLoss(**dict(loss))

    def learn() -> None:
        mask_logits = model.grounding.decode(views, prompts, of_object)
        logits = model.new_tokens.logits(model.language_model.get_output_embeddings(), state)
        torch.stack(list(total(mask_logits, logits, labels, batch).values())).sum().backward()

    def answer() -> None:
        logits = model.new_tokens.logits(model.language_model.get_output_embeddings(), state)
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()

    both, alone = held_by(learn)[0], held_by(answer)[0]
    model.zero_grad(set_to_none=True)
    return max(0, both.peak - alone.peak), alone.peak


def _features(shapes: Shapes, images: int) -> ImageFeatures:
    grounding = shapes.model.grounding
    side, late = grounding.image_size, grounding.convolves_late
    wide = (PROMPT_DIM, PROMPT_DIM) if late else (PROMPT_DIM // 4, PROMPT_DIM // 8)
    return ImageFeatures(
        _empty(images, PROMPT_DIM, side // 16, side // 16),
        _empty(images, wide[0], side // 8, side // 8),
        _empty(images, wide[1], side // 4, side // 4),
    )


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
    """`fused_decoder.FusedLayer` with Liger's kernels: per token, two bytes for a number and one for a dropout mask."""
    text = shapes.text
    hidden, inner = int(text.hidden_size), int(text.intermediate_size)
    keys = hidden // int(text.num_attention_heads) * int(text.num_key_value_heads)
    lora = setup.sa2va.get("lora") or {}
    rank, dropout = int(lora.get("r", 64)), bool(lora.get("dropout", 0.1))
    attention = 2 * (hidden + hidden + 2 * keys + hidden + hidden)  # norm's output; q, k, v; mixed, and packed again
    mlp = 2 * (hidden + hidden + 2 * inner)  # sum behind attention, norm's output; gate, up
    adapters = 2 * 7 * rank + (3 * hidden + inner if dropout else 0)  # reduced inputs; dropout masks of four inputs
    # Backward through the last product: gate * up anew, its gradient, one masked copy; gradients of the layer's ends.
    gradients = 2 * (3 * inner + 3 * hidden)
    kept = attention + mlp + adapters
    return Layer(tokens * kept, tokens * (kept + gradients), tokens * 2 * hidden)


def _unpacked(shapes: Shapes) -> int:
    """The largest 4-bit matrix in bf16, twice: the last one is freed when the next is there."""
    return 2 * 2 * max(weight.numel for weight in shapes.weights if weight.in_4_bits)


def _empty(*shape: int) -> Tensor:
    return torch.empty(*shape, dtype=torch.bfloat16, device="meta")
