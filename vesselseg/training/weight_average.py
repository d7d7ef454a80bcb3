"""Exponential moving average of the trained weights, which is validated, saved and exported if `schedule.ema` is set.

A checkpoint iter_N.pth contains the averaged weights, because every reader of it predicts with them. The weights that
the optimizer continues with are in iter_N.resume, next to the average in float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vesselseg.errors import WeightsError
from vesselseg.training.flat_parameters import FlatBuffer
from vesselseg.training.optimizer_state import trained_buffers

AVERAGE, WEIGHT = "average", "weight"  # prefixes of the entries of a file


class WeightAverage:
    """A float32 average of each tensor that the optimizer steps on; the same on every process (ZeRO 1 and 2).

    engine: DeepSpeed's, whose current weights the average starts from. decay: share of the average that is kept in a
    step. In step n it is at most (1 + n) / (10 + n), so that the first weights are soon forgotten.
    """

    def __init__(self, engine: Any, decay: float) -> None:
        self.buffers = trained_buffers(engine)
        self.decay = decay
        self.steps = 0
        self.averages = [buffer.tensor.detach().float().clone() for buffer in self.buffers]

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after an optimizer step to the average."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for average, buffer in zip(self.averages, self.buffers):
            average.lerp_(buffer.tensor.detach().float(), 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the context, the model has the averaged weights; afterwards its own again."""
        own = [buffer.tensor.detach().clone() for buffer in self.buffers]
        _put(self.buffers, self.averages)
        try:
            yield
        finally:
            _put(self.buffers, own)

    def write(self, path: Path) -> None:
        """Write the average and the model's own weights by parameter name, and the number of steps."""
        tensors = {}
        for buffer, average in zip(self.buffers, self.averages):
            for prefix, whole in ((AVERAGE, average), (WEIGHT, buffer.tensor.detach())):
                sizes = [parameter.numel() for _, parameter in buffer.parts]
                for (name, parameter), part in zip(buffer.parts, whole.reshape(-1).split(sizes)):
                    tensors[f"{prefix}.{name}"] = part.reshape(parameter.shape).to("cpu", copy=True)
        save_file(tensors, path, metadata={"steps": str(self.steps)})


def restore_average(path: Path, engine: Any, average: WeightAverage | None) -> None:
    """Load a written average into `average`, if not None, and the weights next to it into the model.

    Raises WeightsError for a file that is damaged or belongs to other parameters.
    """
    buffers = trained_buffers(engine)
    try:
        with safe_open(str(path), framework="pt") as file:
            _put(buffers, [_read(file, WEIGHT, buffer) for buffer in buffers])
            if average is not None:
                average.averages = [_read(file, AVERAGE, buffer).to(buffer.tensor.device) for buffer in buffers]
                average.steps = int(file.metadata()["steps"])
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise WeightsError(f"{path}: not an average of this model's weights ({error})") from None


def _read(file: Any, prefix: str, buffer: FlatBuffer) -> Tensor:
    """The entries of a buffer in its shape."""
    parts = [file.get_tensor(f"{prefix}.{name}").reshape(-1) for name, _ in buffer.parts]
    return torch.cat(parts).reshape(buffer.tensor.shape)


@torch.no_grad()
def _put(buffers: Sequence[FlatBuffer], values: Sequence[Tensor]) -> None:
    """Copy values into the weights; DeepSpeed's float32 master weights, which it steps on, do not change."""
    for buffer, value in zip(buffers, values):
        buffer.tensor.data.copy_(value)
