"""A U-Net as a baseline, trained from scratch with nnU-Net's recipe on the training images of a dataset folder.

Isensee et al., Nature Methods 2021: the network of `plain_unet`, Dice + cross-entropy at every level, SGD with Nesterov
momentum and a polynomial decay of the learning rate, and its list of augmentations (`dataset.augment.NNUNET`). AdamW
with averaged weights and other augmentations are options. Only the schedule is shorter: nnU-Net trains for 250,000
steps.
"""

from __future__ import annotations

import copy
import itertools
import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from vesselseg.baselines.options import UNetOptions
from vesselseg.baselines.plain_unet import PlainUNet
from vesselseg.dataset.augment import PRESETS, Augment
from vesselseg.evaluation.threshold import best_threshold, threshold_counts
from vesselseg.machine import available_cores

_log = logging.getLogger(__name__)

RATES = {"sgd": 0.01, "adamw": 1e-3}
CLIPS = {"sgd": 12.0, "adamw": 1.0}  # largest norms of a gradient
_AVERAGED = 0.997  # part of the moving average that stays at each step
_WARMUP = 0.03  # share of an AdamW schedule
_POWER = 0.9  # of the polynomial decay
_AHEAD = 0.02  # so far may the time be ahead of the steps before the learning rate follows it
_WORKERS = 8


class LabelledDataset(Protocol):
    """A sequence of images (height, width, 3) uint8 with truths (height, width) bool."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """An image and its truth."""


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
    train: LabelledDataset,
    validation: LabelledDataset,
    options: UNetOptions,
    device: torch.device,
    augment: Augment | None = None,
) -> TrainedUNet:
    """Train on one part, take epoch and threshold with the highest mean Dice on the other.

    augment: in place of the options' one. With the same seed, on the same machine and ended by its epochs, two
    trainings give the same weights.
    """
    network = build_unet(options).to(device)
    trainer = _Trainer(network, options, device, len(train))
    batches = _batches(train, options, augment or PRESETS[options.augment], device)
    epochs: list[Epoch] = []
    kept: dict[str, Tensor] = {}
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        while len(epochs) < options.epochs and (not epochs or trainer.share_of_time() < 1):
            loss = trainer.run_epoch(batches)
            epochs.append(Epoch(loss, *_validate(trainer.judged, validation, options.size)))
            _log.info("epoch %d: loss %.4f, validation Dice %.4f at %.2f", len(epochs), *asdict(epochs[-1]).values())
            if epochs[-1].dice >= max(epoch.dice for epoch in epochs):
                kept, best = {name: v.clone() for name, v in trainer.judged.state_dict().items()}, len(epochs) - 1
    network.load_state_dict(kept)
    ended_by = "epochs" if len(epochs) == options.epochs and trainer.share_of_time() < 1 else "minutes"
    return TrainedUNet(network.eval(), options.size, epochs, best, ended_by)


def build_unet(options: UNetOptions) -> PlainUNet:
    """The network with weights drawn from the options' seed; the caller's random state stays what it is."""
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        return PlainUNet(options.size, options.width)


@torch.inference_mode()
def predict(network: nn.Module, image: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """Probabilities (height, width) float32 of an image (height, width, 3) uint8, seen as a square of side size."""
    network.eval()
    square = standardised(_square(image, size)[None].to(next(network.parameters()).device))
    with _autocast(square.device):
        finest = network(square)[0]  # (1, 1, size, size)
    full = functional.interpolate(finest.float(), size=image.shape[:2], mode="bilinear", align_corners=False)
    probabilities: NDArray[np.float32] = torch.sigmoid(full)[0, 0].cpu().numpy()
    return probabilities


def standardised(pictures: Tensor) -> Tensor:
    """(batch, 3, side, side) uint8 -> float32 of mean 0 and standard deviation 1 per image and channel."""
    values = pictures.float()
    deviation, mean = torch.std_mean(values, dim=(2, 3), keepdim=True)
    return (values - mean) / deviation.clamp(min=1)


def unet_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """BCE + soft Dice loss over the whole batch, a scalar; logits, truth: (batch, 1, side, side), truth in 0..1.

    Soft Dice: Milletari et al., "V-Net", 3DV 2016, with sums instead of squares and 1 added to both terms.
    """
    probabilities = torch.sigmoid(logits)
    overlap = 2 * (probabilities * truth).sum() + 1
    dice = overlap / (probabilities.sum() + truth.sum() + 1)
    return functional.binary_cross_entropy_with_logits(logits, truth) + 1 - dice


def supervised_loss(outputs: Sequence[Tensor], truth: Tensor) -> Tensor:
    """Mean of `unet_loss` over the levels, each with half the weight of the next finer one.

    outputs: logits (batch, 1, side / 2^k, side / 2^k). truth: (batch, 1, side, side), averaged where they are coarser.
    """
    weights = [0.5**level for level in range(len(outputs))]
    losses = [
        weight * unet_loss(logits, functional.adaptive_avg_pool2d(truth, logits.shape[-1]))
        for weight, logits in zip(weights, outputs)
    ]
    return torch.stack(losses).sum() / sum(weights)


class _Trainer:
    """Steps of a training: network, optimizer, learning rate, and with AdamW the averaged weights."""

    def __init__(self, network: PlainUNet, options: UNetOptions, device: torch.device, images: int) -> None:
        self.network, self.options, self.device = network, options, device
        self.forward = torch.compile(network) if options.compile else network
        self.average = copy.deepcopy(network).requires_grad_(False) if options.optimizer == "adamw" else None
        self.optimizer = _optimizer(network, options)
        self.steps_per_epoch = steps_per_epoch(images, options)
        self.step = 0
        self.started = time.monotonic()

    @property
    def judged(self) -> nn.Module:
        """The validated network: with averaged weights, or with SGD the trained one."""
        return self.network if self.average is None else self.average

    def share_of_time(self) -> float:
        """Elapsed fraction of `minutes`, 0 to 1 and more."""
        return (time.monotonic() - self.started) / (60 * self.options.minutes)

    def progress(self) -> float:
        """Finished fraction of the training, 0 to 1: of its steps, or of its time where that is ahead."""
        steps, over = self.step / (self.options.epochs * self.steps_per_epoch), self.share_of_time()
        return min(1.0, over) if over > steps + _AHEAD else steps

    def run_epoch(self, batches: Iterator[tuple[Tensor, Tensor]]) -> float:
        """Train one epoch, at least one step, until the time is over; returns the mean loss."""
        losses: list[Tensor] = []
        self.network.train()
        while len(losses) < self.steps_per_epoch and (not losses or self.share_of_time() < 1):
            pictures, truths = next(batches)
            losses.append(self._step(pictures.to(self.device, non_blocking=True), truths.to(self.device)))
        return float(torch.stack(losses).mean())

    def _step(self, pictures: Tensor, truths: Tensor) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.options, self.progress())
        with _autocast(self.device):
            outputs = self.forward(standardised(pictures))
        loss = supervised_loss(outputs, truths.float())
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), CLIPS[self.options.optimizer])
        self.optimizer.step()
        self.step += 1
        if self.average is not None:
            kept = min(_AVERAGED, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                for averaged, own in zip(self.average.parameters(), self.network.parameters()):
                    averaged.lerp_(own, 1 - kept)
        return loss.detach()


def learning_rate(options: UNetOptions, progress: float) -> float:
    """After this share of the training: SGD's polynomial decay, or AdamW's warm-up and cosine."""
    peak = RATES[options.optimizer] if options.learning_rate is None else options.learning_rate
    if options.optimizer == "sgd":
        return peak * (1 - progress) ** _POWER
    if progress < _WARMUP:
        return peak * max(progress / _WARMUP, 0.01)
    return peak * max(0.01, 0.5 * (1 + math.cos(math.pi * (progress - _WARMUP) / (1 - _WARMUP))))


def steps_per_epoch(images: int, options: UNetOptions) -> int:
    """A pass over the images, and at least the options' number of steps."""
    return max(options.steps, -(-images // options.batch))


def _optimizer(network: nn.Module, options: UNetOptions) -> torch.optim.Optimizer:
    rate = learning_rate(options, 0.0)
    if options.optimizer == "sgd":
        return torch.optim.SGD(network.parameters(), lr=rate, momentum=0.99, nesterov=True, weight_decay=3e-5)
    decayed = [one for one in network.parameters() if one.ndim > 1]
    others = [one for one in network.parameters() if one.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99))


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def _validate(network: nn.Module, validation: LabelledDataset, size: int) -> tuple[float, float]:
    """(mean Dice, threshold) at the best threshold."""
    counts = []
    for index in range(len(validation)):
        image, truth = validation[index]
        counts.append(threshold_counts(predict(network, image, size), truth))
    threshold, dice = best_threshold(np.stack(counts))
    return dice, threshold


class _Augmented(Dataset):
    """(pass, index) -> picture (3, side, side) uint8 and truth (1, side, side) float16, from (seed, pass, index)."""

    def __init__(self, pictures: LabelledDataset, size: int, augment: Augment, seed: int) -> None:
        self._pictures, self._size, self._augment, self._seed = pictures, size, augment, seed

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, Tensor]:
        number, index = item
        image, truth = self._pictures[index]
        generator = np.random.default_rng((self._seed, number, index))
        image, masks = self._augment(image, truth[None].astype(np.uint8), generator)
        # Area averaging keeps vessels thinner than a pixel of the square as fractions.
        smaller = cv2.resize(masks[0].astype(np.float32), (self._size, self._size), interpolation=cv2.INTER_AREA)
        return _square(image, self._size), torch.from_numpy(smaller.astype(np.float16))[None]


def _square(image: NDArray[np.uint8], size: int) -> Tensor:
    """(height, width, 3) uint8 -> (3, size, size) uint8."""
    if image.shape[:2] != (size, size):
        larger = size > min(image.shape[:2])
        interpolation = cv2.INTER_CUBIC if larger else cv2.INTER_AREA
        image = np.asarray(cv2.resize(image, (size, size), interpolation=interpolation), np.uint8)
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _batches(
    train: LabelledDataset, options: UNetOptions, augment: Augment, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batch after batch through all epochs; on a GPU other processes read and augment ahead."""
    workers = 0 if device.type == "cpu" else min(_WORKERS, available_cores())
    loader: Iterable[tuple[Tensor, Tensor]] = DataLoader(
        _Augmented(train, options.size, augment, options.seed),
        batch_sampler=list(_order(len(train), options)),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # otherwise it would draw from the global generator
    )
    return iter(loader)


def _order(count: int, options: UNetOptions) -> Iterator[list[tuple[int, int]]]:
    """The (pass, index) of every batch of all epochs; each pass over the images has its own order."""
    stream = (
        (number, index)
        for number in itertools.count()
        for index in np.random.default_rng((options.seed, number)).permutation(count).tolist()
    )
    for _ in range(options.epochs * steps_per_epoch(count, options)):
        yield list(itertools.islice(stream, options.batch))
