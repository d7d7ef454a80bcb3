"""Which decoder layers are computed again in the backward pass, and where what they keep waits for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vesselseg.errors import UserError


def layers_to_recompute(setting: bool | int, layers: int) -> int:
    """How many layers, from the first on: True is all, False none, a number so many."""
    count = layers if setting is True else int(setting)
    if not 0 <= count <= layers:
        raise UserError(
            f"model.sa2va.gradient_checkpointing is {setting}; expected True, False or how many of the language "
            f"model's {layers} layers are recomputed"
        )
    return count


def recompute_layers(language: PreTrainedModel, count: int, *, reentrant: bool, on_host: bool) -> None:
    """The first `count` decoder layers keep only their input while training; on_host: in main memory."""
    language.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    for number, layer in enumerate(language.model.layers):
        layer.gradient_checkpointing = number < count
        if on_host:
            layer._gradient_checkpointing_func = _waiting(layer._gradient_checkpointing_func)


def kept_on_host() -> AbstractContextManager:
    """What autograd keeps of the calls inside waits in page-locked main memory; nothing changes on a CPU.

    Copies both ways are queued behind the computation; torch's own save_on_cpu waits for each.
    """
    return torch.autograd.graph.saved_tensors_hooks(_to_host, _from_host)


def _waiting(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        with kept_on_host():
            return function(*arguments)

    return call


def _to_host(tensor: Tensor) -> tuple[torch.device, Tensor]:
    if not tensor.is_cuda:
        return tensor.device, tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return tensor.device, host.copy_(tensor, non_blocking=True)


def _from_host(kept: tuple[torch.device, Tensor]) -> Tensor:
    device, tensor = kept
    return tensor.to(device, non_blocking=True)
