"""Exponential moving average of the trained weights: what is validated, saved and exported, if `schedule.ema` is set.

A checkpoint iter_N.pth holds the averaged weights, because every reader of it predicts with them. The weights that the
optimizer goes on with are in iter_N.resume, next to the average in float32.
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
from vesselseg.training.flat_parameters import Piece
from vesselseg.training.optimizer_state import trained_pieces

AVERAGE, WEIGHT = "average", "weight"  # prefixes of the entries of a file


class WeightAverage:
    """A float32 average of each tensor that the optimizer steps on; the same on every process (ZeRO 1 and 2).

    engine: of DeepSpeed, whose current weights the average starts with. decay: share of the average that stays at a
    step. At step n it is at most (1 + n) / (10 + n), so that the first weights are soon forgotten.
    """

    def __init__(self, engine: Any, decay: float) -> None:
        self.pieces = trained_pieces(engine)
        self.decay = decay
        self.steps = 0
        self.averages = [piece.whole.detach().float().clone() for piece in self.pieces]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after an optimizer step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for average, piece in zip(self.averages, self.pieces):
            average.lerp_(piece.whole.detach().float(), 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights in this context, and its own again afterwards."""
        own = [piece.whole.detach().clone() for piece in self.pieces]
        _put(self.pieces, self.averages)
        try:
            yield
        finally:
            _put(self.pieces, own)

    def write(self, path: Path) -> None:
        """The average and the model's own weights by parameter name, and the number of steps."""
        tensors = {}
        for piece, average in zip(self.pieces, self.averages):
            for prefix, whole in ((AVERAGE, average), (WEIGHT, piece.whole.detach())):
                sizes = [parameter.numel() for _, parameter in piece.parts]
                for (name, parameter), part in zip(piece.parts, whole.reshape(-1).split(sizes)):
                    tensors[f"{prefix}.{name}"] = part.reshape(parameter.shape).to("cpu", copy=True)
        save_file(tensors, path, metadata={"steps": str(self.steps)})


def restore_average(path: Path, engine: Any, average: WeightAverage | None) -> None:
    """Put a written average into `average`, if there is one, and the weights next to it into the model.

    Raises WeightsError for a file that is damaged or of other parameters.
    """
    pieces = trained_pieces(engine)
    try:
        with safe_open(str(path), framework="pt") as file:
            _put(pieces, [_whole(file, WEIGHT, piece) for piece in pieces])
            if average is not None:
                average.averages = [_whole(file, AVERAGE, piece).to(piece.whole.device) for piece in pieces]
                average.steps = int(file.metadata()["steps"])
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise WeightsError(f"{path}: not an average of this model's weights ({error})") from None


def _whole(file: Any, prefix: str, piece: Piece) -> Tensor:
    """The entries of a piece in its shape."""
    parts = [file.get_tensor(f"{prefix}.{name}").reshape(-1) for name, _ in piece.parts]
    return torch.cat(parts).reshape(piece.whole.shape)


@torch.no_grad()
def _put(pieces: Sequence[Piece], values: Sequence[Tensor]) -> None:
    """Copy values into the weights; DeepSpeed's float32 masters, from which it steps, stay what they are."""
    for piece, value in zip(pieces, values):
        piece.whole.data.copy_(value)
