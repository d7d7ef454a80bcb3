"""Elementwise parts of a decoder layer: Liger's Triton kernels on a GPU, the same formulas in torch elsewhere."""

from __future__ import annotations

import functools
import importlib.util
import shutil

import torch
from torch import Tensor
from torch.nn import functional


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root mean square norm over the last dimension (Zhang and Sennrich 2019), with the mean in float32."""
    if not _on_triton(hidden):
        scaled = hidden.float() * torch.rsqrt(hidden.float().square().mean(-1, keepdim=True) + eps)
        return weight * scaled.to(hidden.dtype)
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    return LigerRMSNormFunction.apply(hidden, weight, eps, 0.0, "llama", False, None)


def rotate(query: Tensor, key: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary position embedding (Su et al. 2021), which rotates element i with element i + width / 2 of a head.

    query, key: (tokens, heads, width); both may be overwritten. cosine, sine: (tokens, width).
    """
    if not _on_triton(query):
        return _rotated(query, cosine, sine), _rotated(key, cosine, sine)
    from liger_kernel.ops.rope import LigerRopeFunction

    # Liger expects shape (batch, heads, tokens, width), contiguous in memory as (batch, tokens, heads, width).
    q, k = query.unsqueeze(0).transpose(1, 2), key.unsqueeze(0).transpose(1, 2)
    q, k = LigerRopeFunction.apply(q, k, cosine.unsqueeze(0), sine.unsqueeze(0))
    return q.transpose(1, 2).squeeze(0), k.transpose(1, 2).squeeze(0)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer 2020)."""
    if not _on_triton(gate):
        return functional.silu(gate) * up
    from liger_kernel.ops.swiglu import swiglu_forward

    return swiglu_forward(gate, up)[2]


def swiglu_gradient(gate: Tensor, up: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up, given that of silu(gate) * up; gate and up may be overwritten."""
    if not _on_triton(gate):
        sigmoid = torch.sigmoid(gate)
        silu = gate * sigmoid  # its derivative is sigmoid + silu (1 - sigmoid)
        return gradient * up * (sigmoid + silu * (1 - sigmoid)), gradient * silu
    from liger_kernel.ops.swiglu import swiglu_backward

    return swiglu_backward(gate, up, gradient)


def missing_for_triton() -> str | None:
    """What Liger's kernels need and this machine lacks, or None."""
    if importlib.util.find_spec("liger_kernel") is None:
        return "the package liger-kernel (pip install liger-kernel)"
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        return "a C compiler, which Triton uses (Debian, Ubuntu: apt-get install gcc)"
    return None


def _on_triton(tensor: Tensor) -> bool:
    return tensor.is_cuda and _nothing_missing()


@functools.cache
def _nothing_missing() -> bool:
    # Cached: this check takes longer than a kernel.
    return missing_for_triton() is None


def _rotated(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    rotated = torch.cat([-second, first], dim=-1)  # by 90 degrees in the plane of each pair
    return heads * cosine.unsqueeze(1) + rotated * sine.unsqueeze(1)
