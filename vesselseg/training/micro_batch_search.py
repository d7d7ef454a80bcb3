"""The largest micro-batch that fits, found by trial: forward, backward, and the memory of an optimizer step.

A process that runs out of memory must not leave the others waiting, so there are two strategies. Up to ZeRO-2 every
process tries a size independently, because gradients are not reduced before the optimizer step, and the results are
combined afterwards; memory may run out. ZeRO-3 gathers weights in every layer: there a size is tried only if the trials
of smaller ones predict that it fits.
"""

from __future__ import annotations

import functools
import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from mmengine.config import Config
from PIL import Image

from vesselseg.config.load import expand
from vesselseg.config.settings import Schedule, read_section
from vesselseg.dataset.batch import Batch, Example
from vesselseg.dataset.collate import collate
from vesselseg.dataset.manifest import Record, image_path
from vesselseg.dataset.prompts import ANSWER, QUESTIONS, question_for
from vesselseg.dataset.vessel_dataset import VesselDataset, View
from vesselseg.errors import UserError
from vesselseg.inference.out_of_memory import is_out_of_memory
from vesselseg.machine import GIB
from vesselseg.registry import build
from vesselseg.training import console
from vesselseg.training.feature_filling import encode_each, move_encoders
from vesselseg.training.launch import make_strategy, readable_errors, start_from_folder
from vesselseg.training.memory import remedies
from vesselseg.training.memory_limit import MemoryLimit, memory_limit
from vesselseg.training.plan import TrainPlan
from vesselseg.training.strategy import VesselStrategy
from vesselseg.training.train_step import TrainStep

LARGEST = 64  # images; larger micro-batches are not tried
FRAGMENTATION = 0.05  # share of the memory that is lost between blocks in use
LONGEST = 8  # number of the longest conversations, which the trial micro-batches repeat


@dataclass(frozen=True)
class Trial:
    """One size. peak: bytes. seconds: per image, forward and backward; None if it did not fit."""

    images: int
    peak: float
    seconds: float | None

    @property
    def fits(self) -> bool:
        """Whether it ran on all processes."""
        return self.seconds is not None


def find_micro_batch(config: Config) -> str:
    """Try sizes and report; a collective call that writes and changes nothing.

    Raises UserError if not even one image fits.
    """
    with readable_errors(config), tempfile.TemporaryDirectory() as folder:
        config = start_from_folder(config)
        parts = expand(config)
        strategy = make_strategy(parts["strategy"], config, Path(folder))
        console.set_up(strategy.rank)
        dataset = build(parts["train_dataset"])
        strategy.load_from = config["load_from"]
        schedule = read_section(config, "schedule")
        rates = {key: config["schedule"][key] for key in ("lr", "betas", "weight_decay")}
        strategy.prepare(parts["model"], optim_wrapper=rates, dispatch_kwargs={})
        examples = worst_examples(strategy, dataset, stored=config["features"]["store"] is not None)
        trials = Trials(strategy, examples, schedule, memory_limit(strategy.device))
        found = search(trials.run, max(LARGEST, schedule.micro_batch * schedule.accumulation))
        check_one_image_fits(found, config)
        return report(found, schedule, trials.memory)


def search(run: Callable[[int], Trial], most: int) -> dict[int, Trial]:
    """Double the size until it does not fit, then halve the gap. Returns the trials by size."""
    trials = {1: run(1)}
    size = 1
    while trials[size].fits and size < most:
        size = min(2 * size, most)
        trials[size] = run(size)
    low = max((images for images, trial in trials.items() if trial.fits), default=1)
    high = size
    while high - low > 1 and trials[low].fits:
        middle = (low + high) // 2
        trials[middle] = run(middle)
        low, high = (middle, high) if trials[middle].fits else (low, middle)
    return dict(sorted(trials.items()))


def check_one_image_fits(trials: dict[int, Trial], config: Config) -> None:
    """Raise UserError if not even one image fits."""
    if trials[1].fits:
        return
    single = {**config, "schedule": {**config["schedule"], "micro_batch": 1}}
    listed = "\n  ".join(f"{number}. {line}" for number, line in enumerate(remedies(single), start=1))
    raise UserError(f"not even a micro-batch of one image fits; possible changes, cheapest first\n  {listed}")


def report(trials: dict[int, Trial], schedule: Schedule, memory: MemoryLimit) -> str:
    """The sizes as a table, and the settings to use."""
    lines = [f"{'micro-batch':>11}  {'s per image':>11}  {'peak GiB':>8}"]
    for trial in trials.values():
        shown = f"{trial.seconds:>11.4f}  {trial.peak / GIB:>8.2f}" if trial.seconds is not None else "does not fit"
        lines.append(f"{trial.images:>11}  {shown}")
    largest = max(images for images, trial in trials.items() if trial.fits)
    group = schedule.micro_batch * schedule.accumulation
    micro_batch = max(size for size in range(1, min(largest, group) + 1) if group % size == 0)
    ending = "; larger ones were not tried" if largest == max(trials) else ""
    lines += [
        f"the largest that fits: {largest} (of {memory.describe()}{ending})",
        f"for {group} images per process and optimizer step, as before: --cfg-options "
        f"schedule.micro_batch={micro_batch} schedule.accumulation={group // micro_batch}",
    ]
    return "\n".join(lines)


class Trials:
    """Runs trials on all processes, within a memory limit."""

    def __init__(
        self, strategy: VesselStrategy, examples: Sequence[Example], schedule: Schedule, memory: MemoryLimit
    ) -> None:
        self.strategy = strategy
        self.engine = strategy.model.model
        self.examples = examples
        self.memory = memory
        # Two iterations need as much memory as any larger group: accumulated gradients in addition to the last ones.
        schedule = replace(schedule, accumulation=min(2, schedule.accumulation), max_iters=None, epochs=10**6)
        self.plan = TrainPlan(len(examples), strategy.world_size, schedule)
        self.done: list[Trial] = []
        self.engine.train()
        self.memory.restart()
        self.before = self.memory.peak()

    def run(self, images: int) -> Trial:
        """One size; the same outcome on every process."""
        if self.strategy.stage == 3:
            trial = self._attempt(images, self._whole_step) if self._will_fit(images) else Trial(images, 0.0, None)
        elif not self.done:
            trial = self._first(images)
        else:
            trial = self._attempt(images, self._forward_backward)
        self.done.append(trial)
        return trial

    def _first(self, images: int) -> Trial:
        """Forward and backward, then a whole step, whose optimizer states exist in all later trials."""
        alone = self._attempt(images, self._forward_backward)
        if not alone.fits:
            return alone
        whole = self._attempt(images, self._whole_step)
        return replace(alone, peak=max(alone.peak, whole.peak)) if whole.fits else whole

    def _will_fit(self, images: int) -> bool:
        """Prediction from earlier trials: a line through the last two; after one trial, its memory per image."""
        if not self.done:
            return True
        last = self.done[-1]
        per_image = (last.peak - self.before) / last.images
        fitting = [trial for trial in self.done if trial.fits]
        if len(fitting) > 1:
            first, last = fitting[-2:]
            per_image = (last.peak - first.peak) / (last.images - first.images)
        return last.peak + max(0.0, per_image) * (images - last.images) <= self.memory.max_bytes * (1 - FRAGMENTATION)

    def _attempt(self, images: int, work: Callable[[Batch], int]) -> Trial:
        """Run twice and time the second run. work: returns how often it has processed the batch."""
        batch = collate([self.examples[number % len(self.examples)] for number in range(images)])
        seconds, failed = 0.0, False
        self.memory.restart()
        try:
            with self.memory.enforced():
                for _ in range(2):
                    started = time.perf_counter()
                    times = work(batch)
                    self.memory.wait()
                    seconds = (time.perf_counter() - started) / (images * times)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            failed = True
        if failed and self.strategy.stage == 3:  # the others wait for this process and end with it
            fitting = max((trial.images for trial in self.done if trial.fits), default=0)
            raise UserError(f"a micro-batch of {images} ran out of memory; the largest that fitted is {fitting}")
        # Outside of the handler the error is gone, and with it the frames that hold the activations.
        peak = self.memory.peak()
        if self.engine.flat_parameters is not None:
            self.engine.flat_parameters.clear()
        gc.collect()
        self.memory.release()
        worst = torch.tensor([float(failed), seconds, peak], dtype=torch.float64, device=self.strategy.device)
        torch.distributed.all_reduce(worst, op=torch.distributed.ReduceOp.MAX)
        failed_anywhere, seconds, peak = worst.tolist()
        return Trial(images, peak, None if failed_anywhere else seconds)

    def _forward_backward(self, batch: Batch) -> int:
        """Forward and backward without communication."""
        losses = self.engine.module(batch.to(self.strategy.device))
        torch.stack(list(losses.values())).sum().backward()
        return 1

    def _whole_step(self, batch: Batch) -> int:
        """An accumulation group with its optimizer step, as in training."""
        steps = TrainStep(self.engine, self.plan)
        for _ in range(self.plan.schedule.accumulation):
            steps.run(batch)
        return self.plan.schedule.accumulation


def worst_examples(strategy: VesselStrategy, dataset: VesselDataset, stored: bool) -> list[Example]:
    """The longest conversations, as training reads them. stored: with features instead of images."""
    examples = [dataset[index] for index in longest_first(dataset)[:LONGEST]]
    if not stored:
        return examples
    sa2va = strategy.model.model.module.sa2va.eval()
    nothing = torch.empty(0)
    with strategy.ready_to_predict():
        for number, example in enumerate(examples):
            encoded = encode_each(sa2va, [View(example.tiles, example.sam_image, example.masks)])[0]
            examples[number] = replace(example, tiles=nothing, sam_image=nothing, encoded=encoded)
    if strategy.stage < 3:
        move_encoders(sa2va, torch.device("cpu"))
    return examples


def longest_first(dataset: VesselDataset) -> list[int]:
    """Indices sorted by the tokens of image and conversation, then by the number of masks, largest first."""

    @functools.cache
    def text_tokens(phrases: tuple[str, ...]) -> int:
        lengths = []
        for choice in range(len(QUESTIONS)):
            rounds = [(question_for(phrase, choice), ANSWER) for phrase in phrases]
            lengths.append(len(dataset.tokens.encode(rounds, 0)[0]))
        return max(lengths)

    def cost(record: Record) -> tuple[int, int]:
        with Image.open(image_path(dataset.root, record)) as image:
            tiles = dataset.views.tile_count(*image.size)
        phrases = record.phrases or (dataset.default_phrase,)
        return tiles * dataset.tokens_per_tile + text_tokens(tuple(phrases)), len(phrases)

    costs = [cost(record) for record in dataset.records]
    return sorted(range(len(costs)), key=lambda index: costs[index], reverse=True)
