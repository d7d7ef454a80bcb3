"""Run parts of the model on the meta device and count the bytes that they would allocate: shapes only."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Held:
    """Bytes that some work allocates: at its peak, and what is left at its end.

    Tensors that existed before (weights, inputs) do not count.
    """

    peak: int
    left: int


def held_by(work: Callable[[], Any]) -> tuple[Held, Any]:
    """The bytes that `work` allocates on the meta device, and its result."""
    counter = _LiveBytes()
    with _meta(), counter:
        outcome = work()
    return Held(counter.peak, counter.live), outcome


@contextlib.contextmanager
def _meta() -> Iterator[None]:
    with torch.device("meta"), _FusedAttention():
        yield


class _LiveBytes(TorchDispatchMode):
    """Tracks every storage that an operation creates until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors((args, kwargs)):
            self._note(tensor, new=False)
        outcome = func(*args, **(kwargs or {}))
        for tensor in _tensors(outcome):
            self._note(tensor, new=True)
        return outcome

    def _note(self, tensor: Tensor, new: bool) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self.known:
            return
        size = storage.nbytes() if new else 0
        # The callback runs when torch frees the storage: torch keeps one Python object per referenced storage.
        self.known[storage._cdata] = weakref.ref(storage, functools.partial(self._forget, storage._cdata, size))
        self.live += size
        self.peak = max(self.peak, self.live)

    def _forget(self, key: int, size: int, _: Any) -> None:
        self.live -= size
        self.known.pop(key, None)


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


class _FusedAttention(TorchFunctionMode):
    """Attention without a score matrix, as in a GPU's fused kernel; the meta device would materialise it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            return _Attention.apply(*args[:3])
        return func(*args, **(kwargs or {}))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mixed = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, mixed)
        return mixed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
