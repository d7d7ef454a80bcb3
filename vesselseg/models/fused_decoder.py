"""The language model's decoder over packed conversations, with the adapted layers of `fused_linear`.

The arithmetic is that of transformers' own classes, whose weights and rotary frequencies it uses; a test compares
losses and gradients.
"""

from __future__ import annotations

import contextlib
import logging
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from vesselseg.errors import UserError
from vesselseg.models.checkpointing import kept_on_host
from vesselseg.models.fused_linear import AdaptedLinear, adapted, adapted_mlp
from vesselseg.models.kernels import missing_for_triton, rms_norm, rotate

logger = logging.getLogger(__name__)
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
FUSED = ("qwen2", "llama")  # transformers' model types whose layer FusedLayer computes


class FusedDecoder:
    """A decoder (Qwen2 or Llama) in which every linear layer has an adapter, applied to packed conversations.

    recomputed: how many layers, counted from the first, keep only their inputs and are recomputed in the backward pass.
    activations_on_host: keep these inputs in main memory.
    """

    def __init__(self, decoder: Any, recomputed: int, activations_on_host: bool = False) -> None:
        self.decoder = decoder
        self.layers = [FusedLayer(layer) for layer in decoder.layers]
        self.recomputed = recomputed
        self.activations_on_host = activations_on_host

    def __call__(self, embeddings: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """embeddings: (tokens, hidden), conversations of these lengths. Returns the same shape, after the last norm."""
        rows = Rows(lengths, embeddings.device)
        cosine, sine = (part.squeeze(0) for part in self.decoder.rotary_emb(embeddings, rows.positions.unsqueeze(0)))
        hidden = embeddings
        training = self.decoder.training and torch.is_grad_enabled()
        for number, layer in enumerate(self.layers):
            if training and number < self.recomputed:
                # The random state is restored for dropout only: it costs a synchronisation per layer.
                with self._keeping():
                    hidden = checkpoint(
                        layer, hidden, rows, cosine, sine, use_reentrant=True, preserve_rng_state=layer.dropout > 0
                    )
            else:
                hidden = layer(hidden, rows, cosine, sine)
        norm = self.decoder.norm
        return rms_norm(hidden, norm.weight, norm.variance_epsilon)

    def _keeping(self) -> AbstractContextManager:
        if not self.activations_on_host:
            return contextlib.nullcontext()
        return kept_on_host()


def wants_fused(fused: bool | str, device: torch.device, partitioned: bool, model_type: str = "qwen2") -> bool:
    """Whether to build a FusedDecoder; raises UserError where it is requested but not possible.

    partitioned: weights are partitioned over several GPUs (ZeRO-3); only transformers' own modules gather them.
    model_type: of the language model, by transformers' name.
    """
    if fused not in (True, False, "auto"):
        raise UserError(f"model.sa2va.fused is {fused!r}; expected True, False or 'auto'")
    if model_type not in FUSED:
        if fused is True:
            raise UserError(f"model.sa2va.fused=True works with {' and '.join(FUSED)}, not {model_type}; use 'auto'")
        return False
    missing = missing_for_triton() if device.type == "cuda" else None
    if fused is True and partitioned:
        raise UserError("model.sa2va.fused=True does not work with partitioned weights (ZeRO-3); set it to 'auto'")
    if fused is True and missing:
        raise UserError(f"model.sa2va.fused=True needs {missing}; install it, or set it to 'auto' to go without")
    if fused == "auto" and device.type == "cuda" and not partitioned and missing:
        logger.warning("training is slower and takes more memory without %s", missing)
    return fused is True or (fused == "auto" and device.type == "cuda" and not partitioned)


class FusedLayer:
    """One decoder layer of transformers, computed on packed tokens."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        attention, mlp = layer.self_attn, layer.mlp
        self.query, self.key, self.value, self.out = (AdaptedLinear.of(getattr(attention, name)) for name in ATTENTION)
        self.gate, self.up, self.down = (AdaptedLinear.of(getattr(mlp, name)) for name in MLP)
        self.head_width = int(attention.head_dim)
        self.adapter_dropout = float(getattr(attention.q_proj.lora_dropout["default"], "p", 0.0))

    @property
    def dropout(self) -> float:
        """Dropout of the adapters; 0 outside of training."""
        return self.adapter_dropout if self.layer.training else 0.0

    def __call__(self, hidden: Tensor, rows: Rows, cosine: Tensor, sine: Tensor) -> Tensor:
        """hidden: (tokens, hidden). cosine, sine: (tokens, head width). Returns (tokens, hidden)."""
        norm = self.layer.input_layernorm
        read = rms_norm(hidden, norm.weight, norm.variance_epsilon)  # (tokens, hidden)
        parts = adapted(read, (self.query, self.key, self.value), self.dropout)
        query, key, value = (part.unflatten(1, (-1, self.head_width)) for part in parts)
        query, key = rotate(query, key, cosine, sine)
        mixed = attend(query, key, value, rows)
        hidden = hidden + adapted(mixed, (self.out,), self.dropout)[0]
        norm = self.layer.post_attention_layernorm
        read = rms_norm(hidden, norm.weight, norm.variance_epsilon)
        return hidden + adapted_mlp(read, self.gate, self.up, self.down, self.dropout)


def attend(query: Tensor, key: Tensor, value: Tensor, rows: Rows) -> Tensor:
    """Causal attention inside each conversation.

    query: (tokens, heads, width); key, value: (tokens, key heads, width). Returns (tokens, heads * width).
    """
    q, k, v = (rows.padded(part).transpose(1, 2) for part in (query, key, value))
    # Padding is on the right, so the causal mask already hides it from all real tokens.
    mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return rows.packed(mixed.transpose(1, 2)).flatten(1)


class Rows:
    """Conversion of packed tokens to padded rows and back; if all conversations have the same length, both are views.

    lengths: tokens of each conversation. positions: (tokens,) int64, the index of each token in its conversation.
    """

    def __init__(self, lengths: tuple[int, ...], device: torch.device) -> None:
        self.count, self.longest = len(lengths), max(lengths)
        within = torch.cat([torch.arange(length) for length in lengths])
        row = torch.cat([torch.full((length,), number) for number, length in enumerate(lengths)])
        self.positions = within.to(device, non_blocking=True)
        self.places = None
        if len(set(lengths)) > 1:
            self.places = (row * self.longest + within).to(device, non_blocking=True)

    def padded(self, packed: Tensor) -> Tensor:
        """(tokens, ...) -> (conversations, longest, ...), with zeros after the shorter ones."""
        if self.places is not None:
            packed = _Spread.apply(packed, self.places, self.count * self.longest)
        return packed.unflatten(0, (self.count, self.longest))

    def packed(self, padded: Tensor) -> Tensor:
        """(conversations, longest, ...) -> (tokens, ...)."""
        flat = padded.flatten(0, 1)
        return flat if self.places is None else _Collect.apply(flat, self.places)


class _Spread(torch.autograd.Function):
    """Scatter rows into a larger tensor of zeros.

    Places are unique, so the gradient is a plain gather; torch's own gradient of indexing accumulates, which is slower.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(places)
        return rows.new_zeros(size, *rows.shape[1:]).index_copy_(0, places, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.index_select(0, ctx.saved_tensors[0]), None, None


class _Collect(torch.autograd.Function):
    """Gather the rows at the given places; the inverse of _Spread, with a gradient that does not accumulate either."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor) -> Tensor:
        ctx.size = len(rows)
        ctx.save_for_backward(places)
        return rows.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        zeros = gradient.new_zeros(ctx.size, *gradient.shape[1:])
        return zeros.index_copy_(0, ctx.saved_tensors[0], gradient), None
