"""Prompt heads that replace the language model: the mean prompt, a head on SAM2's features, both tuned on masks."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vesselseg.distill.targets import DistillationTargets
from vesselseg.losses.masks import bce_per_object, dice_per_object
from vesselseg.models.prompted_sam2 import PromptHead
from vesselseg.models.sam2_grounding import ImageFeatures, SAM2Grounding

_log = logging.getLogger(__name__)

WIDTH = 64  # channels of the head's correction
PATIENCE = 6  # epochs without a lower validation loss
MAX_EPOCHS = 300


@dataclass(frozen=True)
class Candidate:
    """A trained prompt head."""

    name: str
    meaning: str  # one phrase for reports
    head: PromptHead
    losses: tuple[tuple[float, float], ...] = ()  # per epoch (training, validation); empty without training
    seconds: float = 0.0  # of training
    ended_by: str = ""  # "patience", "epochs" or "minutes"

    @property
    def is_constant(self) -> bool:
        """Whether all images get the same prompts."""
        return self.head.width == 0


Loss = Callable[[PromptHead, DistillationTargets, Tensor], Tensor]


@dataclass(frozen=True)
class Objective:
    """A training objective."""

    learning_rate: float
    batch_size: int  # items per step
    count: Callable[[DistillationTargets], int]  # number of items
    loss: Loss  # mean loss of some items, given by their indices


@dataclass
class HeadTraining:
    """The data and limits that all heads are trained with. The time starts with construction."""

    train: DistillationTargets
    validation: DistillationTargets
    grounding: SAM2Grounding
    phrases: int
    minutes: float  # limit for all heads together
    seed: int = 0
    started: float = field(default_factory=time.monotonic)

    def seconds_left(self) -> float:
        """Seconds until the limit."""
        return self.minutes * 60 - (time.monotonic() - self.started)


def mean_head(targets: DistillationTargets, phrases: int) -> PromptHead:
    """A head that gives the mean prompt of each phrase."""
    head = PromptHead(phrases)
    means = [targets.prompts[targets.phrase_of_item == phrase].mean(dim=0) for phrase in range(phrases)]
    head.base.data = torch.stack(means)  # (phrases, 256)
    return head


def train_candidates(training: HeadTraining) -> Iterator[Candidate]:
    """The candidates, from the simplest to the most expensive one."""
    mean = mean_head(training.train, training.phrases)
    yield Candidate("mean", "the mean of the language model's vectors over the training images", mean)
    initial = add_correction(mean, training.train, training.seed)
    prompts, masks = match_prompts(training.train), match_masks(training.grounding)
    meaning = "read from SAM2's features, trained to give the language model's vectors"
    head = _train(training, initial, prompts, 0.3, "head", meaning)
    yield head
    yield _train(training, mean, masks, 0.5, "mean, tuned", "one vector, started at the mean and trained on the labels")
    yield _train(training, head.head, masks, 1.0, "head, tuned", "the head, trained further on the labels")


def add_correction(mean: PromptHead, targets: DistillationTargets, seed: int) -> PromptHead:
    """A head with a trainable correction that starts at zero, scaled by the prompts' standard deviation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = PromptHead(len(mean.base), WIDTH)
    head.base.data = mean.base.detach().clone()
    deviations = targets.prompts - mean.base.detach()[targets.phrase_of_item]  # (items, 256)
    for phrase in range(len(mean.base)):
        head.spread[phrase] = deviations[targets.phrase_of_item == phrase].square().mean(dim=0).sqrt()
    return head


def _train(
    training: HeadTraining, initial: PromptHead, objective: Objective, share: float, name: str, meaning: str
) -> Candidate:
    """AdamW until the validation loss stops falling; returns the best epoch's weights.

    share: of the remaining seconds.
    """
    began, limit = time.monotonic(), training.seconds_left() * share
    device = training.grounding.sam2.no_mem_embed.device
    head = copy.deepcopy(initial).float().to(device).requires_grad_(True)
    optimizer = torch.optim.AdamW(head.parameters(), lr=objective.learning_rate, weight_decay=1e-2)
    generator = torch.Generator().manual_seed(training.seed)
    best_loss, best_state = _mean_loss(head, training.validation, objective), None
    losses: list[tuple[float, float]] = []
    epochs_without_gain, ended_by = 0, "epochs"
    for _ in range(MAX_EPOCHS):
        train_loss = _train_epoch(head, optimizer, training.train, objective, generator)
        validation_loss = _mean_loss(head, training.validation, objective)
        losses.append((train_loss, validation_loss))
        if validation_loss < best_loss:
            best_loss, best_state, epochs_without_gain = validation_loss, copy.deepcopy(head.state_dict()), 0
        else:
            epochs_without_gain += 1
        if epochs_without_gain >= PATIENCE or time.monotonic() - began > limit:
            ended_by = "patience" if epochs_without_gain >= PATIENCE else "minutes"
            break
    head.load_state_dict(best_state or initial.state_dict())
    _log.info("%s: %d epochs, validation loss %.4f", name, len(losses), best_loss)
    head = head.cpu().requires_grad_(False)
    return Candidate(name, meaning, head, tuple(losses), time.monotonic() - began, ended_by)


def match_prompts(train: DistillationTargets) -> Objective:
    """Squared distance to the teacher's prompts, divided by their variance in the training split.

    The mean prompt of each phrase has a loss of 1 there.
    """
    phrases = train.phrase_of_item
    means = torch.stack([train.prompts[phrases == phrase].mean(dim=0) for phrase in range(int(phrases.max()) + 1)])
    variance = (train.prompts - means[phrases]).square().sum(1).mean().clamp(min=1e-12)

    def loss(head: PromptHead, targets: DistillationTargets, items: Tensor) -> Tensor:
        device = head.base.device
        prompts = head(targets.cells[targets.image_of_item[items]].to(device))  # (items, phrases, 256)
        chosen = prompts[torch.arange(len(items)), targets.phrase_of_item[items]]  # (items, 256)
        return (chosen - targets.prompts[items].to(device)).square().sum(1).mean() / variance.to(device)

    return Objective(learning_rate=1e-3, batch_size=32, count=lambda targets: len(targets.prompts), loss=loss)


def match_masks(grounding: SAM2Grounding) -> Objective:
    """Soft Dice loss and cross-entropy of the decoded masks against the labels; its items are the kept images."""

    def loss(head: PromptHead, targets: DistillationTargets, items: Tensor) -> Tensor:
        device, dtype = head.base.device, grounding.sam2.no_mem_embed.dtype
        images, kept = targets.kept[items], items.tolist()
        features = stack_features([targets.features[index] for index in kept], device, dtype)
        prompts = head(targets.cells[images].to(device))  # (images, phrases, 256)
        # (position in the batch, phrase) of every object
        pairs = [
            (position, int(targets.phrase_of_item[item]))
            for position, image in enumerate(images.tolist())
            for item in torch.nonzero(targets.image_of_item == image).flatten()
        ]
        positions, phrases = torch.tensor(pairs, device=device).T
        logits = grounding.decode(features, prompts[positions, phrases].to(dtype), positions).float()  # (objects, h, w)
        labels = torch.cat([targets.labels[index] for index in kept]).to(device)
        return (dice_per_object(logits, labels) + bce_per_object(logits, labels)).mean()

    return Objective(learning_rate=3e-3, batch_size=4, count=lambda targets: len(targets.kept), loss=loss)


def stack_features(features: list[ImageFeatures], device: torch.device, dtype: torch.dtype) -> ImageFeatures:
    """Features of single images as a batch."""
    views = [one.view for one in features if one.view is not None]
    return ImageFeatures(
        torch.cat([one.embedding for one in features]).to(device, dtype),
        torch.cat([one.stride_8 for one in features]).to(device, dtype),
        torch.cat([one.stride_4 for one in features]).to(device, dtype),
        torch.cat(views).to(device, dtype) if views else None,
    )


def _train_epoch(
    head: PromptHead,
    optimizer: torch.optim.Optimizer,
    targets: DistillationTargets,
    objective: Objective,
    generator: torch.Generator,
) -> float:
    """Mean training loss."""
    total, count = 0.0, objective.count(targets)
    for items in torch.randperm(count, generator=generator).split(objective.batch_size):
        loss = objective.loss(head, targets, items)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += float(loss.detach()) * len(items)
    return total / count


@torch.no_grad()
def _mean_loss(head: PromptHead, targets: DistillationTargets, objective: Objective) -> float:
    count = objective.count(targets)
    batches = torch.arange(count).split(objective.batch_size)
    return sum(float(objective.loss(head, targets, items)) * len(items) for items in batches) / count
