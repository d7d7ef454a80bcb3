"""Prompts that stand in for the language model's: their mean, a head on SAM2's features, both trained on masks."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vesselseg.distill.teaching import Lesson
from vesselseg.losses.masks import bce_per_object, dice_per_object
from vesselseg.models.prompted_sam2 import PromptHead
from vesselseg.models.sam2_grounding import ImageFeatures, SAM2Grounding

_log = logging.getLogger(__name__)

WIDTH = 64  # channels of the head's correction
PATIENCE = 6  # epochs without a better validation loss
EPOCHS = 300


@dataclass(frozen=True)
class Candidate:
    """One way to prompt SAM2 without a language model. course: per epoch (training, validation) loss; empty: no
    training. ended_by: "patience", "epochs" or "minutes".
    """

    name: str
    meaning: str
    head: PromptHead
    course: tuple[tuple[float, float], ...] = ()
    seconds: float = 0.0
    ended_by: str = ""

    @property
    def constant(self) -> bool:
        """Whether every image gets the same prompts."""
        return self.head.width == 0


Loss = Callable[[PromptHead, Lesson, Tensor], Tensor]


@dataclass(frozen=True)
class Aim:
    """What a head is trained for. rate: of learning. at_once: items per step; count: how many a lesson has; loss: the
    mean over some of them, by their numbers.
    """

    rate: float
    at_once: int
    count: Callable[[Lesson], int]
    loss: Loss


@dataclass
class Teaching:
    """What the heads learn from: training and validation split, SAM2, the minutes that all of it may take."""

    train: Lesson
    choosing: Lesson
    grounding: SAM2Grounding
    phrases: int
    minutes: float
    seed: int = 0
    started: float = field(default_factory=time.monotonic)

    def seconds_left(self) -> float:
        """Until the minutes are over."""
        return self.minutes * 60 - (time.monotonic() - self.started)


def mean_head(lesson: Lesson, phrases: int) -> PromptHead:
    """The mean prompt of each phrase."""
    head = PromptHead(phrases)
    means = [lesson.prompts[lesson.phrase_of_item == phrase].mean(dim=0) for phrase in range(phrases)]
    head.base.data = torch.stack(means)
    return head


def candidates(teaching: Teaching) -> Iterator[Candidate]:
    """From the simplest to the one that takes longest."""
    mean = mean_head(teaching.train, teaching.phrases)
    yield Candidate("mean", "the mean of the language model's vectors over the training images", mean)
    started = with_correction(mean, teaching.train, teaching.seed)
    vectors, masks = to_give_vectors(teaching.train), to_draw_masks(teaching.grounding)
    meaning = "read from SAM2's features, trained to give the language model's vectors"
    head = _trained(teaching, started, vectors, 0.3, "head", meaning)
    yield head
    yield _trained(
        teaching, mean, masks, 0.5, "mean, tuned", "one vector, started at the mean and trained on the labels"
    )
    yield _trained(teaching, head.head, masks, 1.0, "head, tuned", "the head, trained further on the labels")


def with_correction(mean: PromptHead, lesson: Lesson, seed: int) -> PromptHead:
    """A head that gives the same prompts, and can learn others; its unit is how far prompts lie from the mean."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = PromptHead(len(mean.base), WIDTH)
    head.base.data = mean.base.detach().clone()
    away = lesson.prompts - mean.base.detach()[lesson.phrase_of_item]
    for phrase in range(len(mean.base)):
        head.spread[phrase] = away[lesson.phrase_of_item == phrase].square().mean(dim=0).sqrt()
    return head


def _trained(teaching: Teaching, start: PromptHead, aim: Aim, share: float, name: str, meaning: str) -> Candidate:
    """AdamW until the validation loss stops falling; the best epoch's weights. share: of the seconds left."""
    began, limit = time.monotonic(), teaching.seconds_left() * share
    device = teaching.grounding.sam2.no_mem_embed.device
    head = copy.deepcopy(start).float().to(device).requires_grad_(True)
    optimizer = torch.optim.AdamW(head.parameters(), lr=aim.rate, weight_decay=1e-2)
    generator = torch.Generator().manual_seed(teaching.seed)
    best, best_state, since, course, ended_by = _mean_loss(head, teaching.choosing, aim), None, 0, [], "epochs"
    for _ in range(EPOCHS):
        train = _epoch(head, optimizer, teaching.train, aim, generator)
        found = _mean_loss(head, teaching.choosing, aim)
        course.append((train, found))
        if found < best:
            best, best_state, since = found, copy.deepcopy(head.state_dict()), 0
        else:
            since += 1
        if since >= PATIENCE or time.monotonic() - began > limit:
            ended_by = "patience" if since >= PATIENCE else "minutes"
            break
    head.load_state_dict(best_state or start.state_dict())
    _log.info("%s: %d epochs, validation loss %.4f", name, len(course), best)
    head = head.cpu().requires_grad_(False)
    return Candidate(name, meaning, head, tuple(course), time.monotonic() - began, ended_by)


def to_give_vectors(train: Lesson) -> Aim:
    """Squared distance to the language model's vectors, over the training split's mean one around their means: 1 is
    what the mean vectors reach there.
    """
    phrases = train.phrase_of_item
    means = torch.stack([train.prompts[phrases == phrase].mean(dim=0) for phrase in range(int(phrases.max()) + 1)])
    scale = (train.prompts - means[phrases]).square().sum(1).mean().clamp(min=1e-12)

    def loss(head: PromptHead, lesson: Lesson, items: Tensor) -> Tensor:
        device = head.base.device
        prompts = head(lesson.cells[lesson.image_of_item[items]].to(device))
        chosen = prompts[torch.arange(len(items)), lesson.phrase_of_item[items]]
        return (chosen - lesson.prompts[items].to(device)).square().sum(1).mean() / scale.to(device)

    return Aim(rate=1e-3, at_once=32, count=lambda lesson: len(lesson.prompts), loss=loss)


def to_draw_masks(grounding: SAM2Grounding) -> Aim:
    """Soft Dice loss and cross-entropy of the masks against the labels. Its items are images with kept features."""

    def loss(head: PromptHead, lesson: Lesson, items: Tensor) -> Tensor:
        device, dtype = head.base.device, grounding.sam2.no_mem_embed.dtype
        images, kept = lesson.kept[items], items.tolist()
        features = joined([lesson.features[number] for number in kept], device, dtype)
        prompts = head(lesson.cells[images].to(device))
        pairs = [
            (place, int(lesson.phrase_of_item[item]))
            for place, image in enumerate(images.tolist())
            for item in _items_of(lesson, image)
        ]
        places, phrases = torch.tensor(pairs, device=device).T
        logits = grounding.decode(features, prompts[places, phrases].to(dtype), places).float()
        labels = torch.cat([lesson.labels[number] for number in kept]).to(device)
        return (dice_per_object(logits, labels) + bce_per_object(logits, labels)).mean()

    return Aim(rate=3e-3, at_once=4, count=lambda lesson: len(lesson.kept), loss=loss)


def _items_of(lesson: Lesson, image: int) -> list[int]:
    return [int(item) for item in torch.nonzero(lesson.image_of_item == image).flatten()]


def joined(features: list[ImageFeatures], device: torch.device, dtype: torch.dtype) -> ImageFeatures:
    """Features of single images as those of a batch."""
    views = [one.view for one in features if one.view is not None]
    return ImageFeatures(
        torch.cat([one.embedding for one in features]).to(device, dtype),
        torch.cat([one.stride_8 for one in features]).to(device, dtype),
        torch.cat([one.stride_4 for one in features]).to(device, dtype),
        torch.cat(views).to(device, dtype) if views else None,
    )


def _epoch(
    head: PromptHead, optimizer: torch.optim.Optimizer, lesson: Lesson, aim: Aim, generator: torch.Generator
) -> float:
    total, count = 0.0, aim.count(lesson)
    for items in torch.randperm(count, generator=generator).split(aim.at_once):
        loss = aim.loss(head, lesson, items)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += float(loss.detach()) * len(items)
    return total / count


@torch.no_grad()
def _mean_loss(head: PromptHead, lesson: Lesson, aim: Aim) -> float:
    count = aim.count(lesson)
    pieces = torch.arange(count).split(aim.at_once)
    return sum(float(aim.loss(head, lesson, items)) * len(items) for items in pieces) / count
