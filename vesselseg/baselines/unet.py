"""A small U-Net as a baseline, trained from scratch on the same images that the big model sees.

Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015, as
segmentation-models-pytorch builds it: a ResNet-18 encoder without pretrained weights and a narrow decoder. The loss
is BCE + Dice, the optimizer AdamW at one rate, and what is scored is a moving average of the weights: it takes the
place of a learning rate that falls, whose end a limit on the time would move.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset

from vesselseg.baselines.options import UNetOptions
from vesselseg.dataset.augment import ORIENTED, Augment
from vesselseg.dataset.image_views import normalise
from vesselseg.evaluation.errors import EvaluationError
from vesselseg.evaluation.threshold import best_threshold, threshold_counts
from vesselseg.machine import available_cores

_log = logging.getLogger(__name__)

AUGMENT = ORIENTED
"""That of ``configs/scratch_1gpu.py``, the other training from scratch; a test compares them."""

_DECODER = (128, 64, 32, 32, 16)
_AVERAGED = 0.99  # part of the moving average that stays at each step
_WORKERS = 8


class Labelled(Protocol):
    """Images with truths, read when they are asked for: (height, width, 3) uint8 and (height, width) bool."""

    def __len__(self) -> int:
        """How many."""

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """One image and its truth."""


@dataclass(frozen=True)
class Epoch:
    """One epoch's mean loss, and the best threshold on the validation images with its mean Dice."""

    loss: float
    dice: float
    threshold: float


class TrainedUNet:
    """The weights of the best epoch. best: its index in epochs; ended_by: "epochs" or "minutes"."""

    def __init__(self, network: nn.Module, size: int, epochs: Sequence[Epoch], best: int, ended_by: str) -> None:
        self.network = network
        self.size = size
        self.epochs = epochs
        self.best = best
        self.ended_by = ended_by

    @property
    def threshold(self) -> float:
        """The threshold with the best mean Dice on the validation images."""
        return self.epochs[self.best].threshold

    def predict(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities (height, width) float32 in 0..1 of an image (height, width, 3) uint8."""
        return predict(self.network, image, self.size)

    def to_dict(self) -> dict[str, Any]:
        """Facts of the training, for JSON."""
        return {
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            "best_epoch": self.best + 1,
            "validation_dice": self.epochs[self.best].dice,
            "ended_by": self.ended_by,
            "epochs": [asdict(epoch) for epoch in self.epochs],
        }


def train_unet(
    train: Labelled,
    validation: Labelled,
    options: UNetOptions,
    device: torch.device,
    augment: Augment = AUGMENT,
) -> TrainedUNet:
    """Train on one part, take epoch and threshold with the highest mean Dice on the other.

    With the same seed, on the same machine and ended by its epochs, two trainings give the same weights.
    """
    network = build_unet(options.seed).to(device)
    averaged = AveragedModel(network, avg_fn=_average, use_buffers=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.learning_rate, weight_decay=1e-4)
    batches = _batches(train, options, augment, device)
    until = time.monotonic() + 60 * options.minutes
    epochs: list[Epoch] = []
    kept: dict[str, Tensor] = {}
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        while len(epochs) < options.epochs and (not epochs or time.monotonic() < until):
            loss = _run_epoch(network, averaged, optimizer, batches, -(-len(train) // options.batch), until)
            epochs.append(Epoch(loss, *_validate(averaged.module, validation, options.size)))
            _log.info("epoch %d: loss %.4f, validation Dice %.4f at %.2f", len(epochs), *asdict(epochs[-1]).values())
            if epochs[-1].dice >= max(epoch.dice for epoch in epochs):
                kept, best = {name: v.clone() for name, v in averaged.module.state_dict().items()}, len(epochs) - 1
    network.load_state_dict(kept)
    ended_by = "epochs" if len(epochs) == options.epochs and time.monotonic() < until else "minutes"
    return TrainedUNet(network.eval(), options.size, epochs, best, ended_by)


def build_unet(seed: int) -> nn.Module:
    """(batch, 3, side, side) -> (batch, 1, side, side) logits, weights drawn from the seed. Raises EvaluationError."""
    try:
        from segmentation_models_pytorch import Unet
    except ImportError as error:
        raise EvaluationError(
            f"the U-Net baseline needs segmentation-models-pytorch ({error}): pip install 'segmentation-models-pytorch"
            ">=0.4', or install vesselseg with the extra baselines"
        ) from None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network: nn.Module = Unet("resnet18", encoder_weights=None, decoder_channels=_DECODER)
    return network


@torch.inference_mode()
def predict(network: nn.Module, image: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """Probabilities (height, width) float32 of an image (height, width, 3) uint8, seen as a square of side size."""
    network.eval()
    square = _square(image, size)[None].to(next(network.parameters()).device)
    full = functional.interpolate(network(square), size=image.shape[:2], mode="bilinear", align_corners=False)
    probabilities: NDArray[np.float32] = torch.sigmoid(full)[0, 0].float().cpu().numpy()
    return probabilities


def unet_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """BCE + soft Dice over the whole batch; both (batch, 1, side, side), truth 0..1."""
    probabilities = torch.sigmoid(logits)
    overlap = 2 * (probabilities * truth).sum() + 1
    dice = overlap / (probabilities.sum() + truth.sum() + 1)
    return functional.binary_cross_entropy_with_logits(logits, truth) + 1 - dice


def _run_epoch(
    network: nn.Module,
    averaged: AveragedModel,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[tuple[Tensor, Tensor]],
    steps: int,
    until: float,
) -> float:
    """Steps of one epoch, cut short at the time `until`, at least one; returns their mean loss."""
    network.train()
    device = next(network.parameters()).device
    losses: list[Tensor] = []
    while len(losses) < steps and (not losses or time.monotonic() < until):
        pictures, truths = next(batches)
        loss = unet_loss(network(pictures.to(device)), truths.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        averaged.update_parameters(network)
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


def _validate(network: nn.Module, validation: Labelled, size: int) -> tuple[float, float]:
    """(mean Dice, threshold) of the best threshold."""
    counts = []
    for index in range(len(validation)):
        image, truth = validation[index]
        counts.append(threshold_counts(predict(network, image, size), truth))
    threshold, dice = best_threshold(np.stack(counts))
    return dice, threshold


class _Augmented(Dataset):
    """(epoch, index) -> picture (3, side, side) and truth (1, side, side) float32, drawn from (seed, epoch, index)."""

    def __init__(self, pictures: Labelled, size: int, augment: Augment, seed: int) -> None:
        self._pictures, self._size, self._augment, self._seed = pictures, size, augment, seed

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, index = item
        image, truth = self._pictures[index]
        generator = np.random.default_rng((self._seed, epoch, index))
        image, masks = self._augment(image, truth[None].astype(np.uint8), generator)
        # Averaged, so that vessels thinner than a pixel of the square stay as a part of it.
        smaller = cv2.resize(masks[0].astype(np.float32), (self._size, self._size), interpolation=cv2.INTER_AREA)
        return _square(image, self._size), torch.from_numpy(smaller)[None]


def _square(image: NDArray[np.uint8], size: int) -> Tensor:
    return normalise(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def _batches(
    train: Labelled, options: UNetOptions, augment: Augment, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batch after batch through all epochs; on a GPU other processes read and augment ahead."""
    workers = 0 if device.type == "cpu" else min(_WORKERS, available_cores())
    loader: Iterable[tuple[Tensor, Tensor]] = DataLoader(
        _Augmented(train, options.size, augment, options.seed),
        batch_sampler=list(_order(len(train), options)),
        num_workers=workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # else it draws from the caller's
    )
    return iter(loader)


def _order(count: int, options: UNetOptions) -> Iterator[list[tuple[int, int]]]:
    """The (epoch, index) of every batch, each epoch in an order of its own."""
    for epoch in range(options.epochs):
        order = np.random.default_rng((options.seed, epoch)).permutation(count).tolist()
        for start in range(0, count, options.batch):
            yield [(epoch, index) for index in order[start : start + options.batch]]


def _average(average: Tensor, present: Tensor, steps: Tensor | int) -> Tensor:
    """Moving average; at first, when there is little to average, it follows faster."""
    kept = min(_AVERAGED, (1 + float(steps)) / (10 + float(steps)))
    return average + (present - average) * (1 - kept)
