"""Activation checkpointing (Chen et al. 2016): which decoder layers are recomputed, and where their inputs are kept."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vesselseg.errors import UserError


def layers_to_recompute(setting: bool | int, layers: int) -> int:
    """The number of layers to recompute, counted from the first: True for all, False for none, or the number itself."""
    count = layers if setting is True else int(setting)
    if not 0 <= count <= layers:
        raise UserError(
            f"model.sa2va.gradient_checkpointing is {setting}; expected True, False or how many of the language "
            f"model's {layers} layers are recomputed"
        )
    return count


def recompute_layers(language: PreTrainedModel, count: int, *, reentrant: bool, on_host: bool) -> None:
    """Let the first `count` decoder layers keep only their inputs while training.

    on_host: they are kept in main memory. reentrant: which implementation of torch's checkpoint is used.
    """
    language.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    for number, layer in enumerate(language.model.layers):
        layer.gradient_checkpointing = number < count
        if on_host:
            layer._gradient_checkpointing_func = _keeping_on_host(layer._gradient_checkpointing_func)


def kept_on_host() -> AbstractContextManager:
    """A context in which tensors saved for the backward pass are moved to page-locked main memory; no effect on a CPU.

    Copies in both directions are asynchronous; those of torch's own save_on_cpu block.
    """
    return torch.autograd.graph.saved_tensors_hooks(_to_host, _from_host)


def _keeping_on_host(function: Callable[..., Any]) -> Callable[..., Any]:
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
