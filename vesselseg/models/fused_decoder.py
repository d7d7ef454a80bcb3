"""The language model's decoder over packed conversations, with the adapted layers of `fused_linear`.

The same arithmetic as transformers' own classes, of which it uses weights and rotary frequencies; a test compares
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
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from vesselseg.errors import UserError
from vesselseg.models.fused_linear import AdaptedLinear, adapted, adapted_mlp
from vesselseg.models.kernels import missing_for_triton, rms_norm, rotate

logger = logging.getLogger(__name__)
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


class FusedDecoder:
    """Reads conversations with a decoder (Qwen2 or Llama) whose every linear layer has an adapter.

    recomputed: how many layers, from the first on, keep only their input and are computed again in the backward pass.
    activations_on_host: what these keep waits in main memory.
    """

    def __init__(self, decoder: Any, recomputed: int, activations_on_host: bool = False) -> None:
        self.decoder = decoder
        self.layers = [FusedLayer(layer) for layer in decoder.layers]
        self.recomputed = recomputed
        self.activations_on_host = activations_on_host

    def __call__(self, embeddings: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """embeddings: (tokens, hidden), conversations of these lengths. Returns the same shape, after the last norm."""
        places = torch.cat([torch.arange(length) for length in lengths]).to(embeddings.device, non_blocking=True)
        cosine, sine = (part.squeeze(0) for part in self.decoder.rotary_emb(embeddings, places.unsqueeze(0)))
        hidden = embeddings
        training = self.decoder.training and torch.is_grad_enabled()
        for number, layer in enumerate(self.layers):
            if training and number < self.recomputed:
                with self._keeping():
                    hidden = checkpoint(
                        layer, hidden, lengths, cosine, sine, use_reentrant=True, preserve_rng_state=layer.dropout > 0
                    )
            else:
                hidden = layer(hidden, lengths, cosine, sine)
        norm = self.decoder.norm
        return rms_norm(hidden, norm.weight, norm.variance_epsilon)

    def _keeping(self) -> AbstractContextManager:
        if not self.activations_on_host:
            return contextlib.nullcontext()
        return torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available())


def wants_fused(fused: bool | str, device: torch.device, partitioned: bool) -> bool:
    """Whether to build a FusedDecoder; raises UserError where it is asked for and cannot be had.

    partitioned: the weights lie on several GPUs in pieces, which only transformers' own modules gather.
    """
    if fused not in (True, False, "auto"):
        raise UserError(f"model.sa2va.fused is {fused!r}; expected True, False or 'auto'")
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
        """Of the adapters; 0 outside of training."""
        return self.adapter_dropout if self.layer.training else 0.0

    def __call__(self, hidden: Tensor, lengths: tuple[int, ...], cosine: Tensor, sine: Tensor) -> Tensor:
        """hidden: (tokens, hidden). cosine, sine: (tokens, head width). Returns (tokens, hidden)."""
        norm = self.layer.input_layernorm
        read = rms_norm(hidden, norm.weight, norm.variance_epsilon)
        parts = adapted(read, (self.query, self.key, self.value), self.dropout)
        query, key, value = (part.unflatten(1, (-1, self.head_width)) for part in parts)
        query, key = rotate(query, key, cosine, sine)
        mixed = attend(query, key, value, lengths)
        hidden = hidden + adapted(mixed, (self.out,), self.dropout)[0]
        norm = self.layer.post_attention_layernorm
        read = rms_norm(hidden, norm.weight, norm.variance_epsilon)
        return hidden + adapted_mlp(read, self.gate, self.up, self.down, self.dropout)


def attend(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Causal attention inside each conversation.

    query: (tokens, heads, width); key, value: (tokens, key heads, width). Returns (tokens, heads * width).
    """
    q, k, v = (_rows(part, lengths).transpose(1, 2) for part in (query, key, value))
    # Padding stands on the right, where no real token looks: a causal mask needs no other.
    mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2).flatten(2)
    if len(set(lengths)) == 1:
        return mixed.flatten(0, 1)
    return torch.cat([row[:length] for row, length in zip(mixed, lengths)])


def _rows(packed: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """(tokens, heads, width) -> (conversations, longest, heads, width); equal lengths are a view."""
    if len(set(lengths)) == 1:
        return packed.unflatten(0, (len(lengths), lengths[0]))
    return pad_sequence(packed.split(list(lengths)), batch_first=True)
