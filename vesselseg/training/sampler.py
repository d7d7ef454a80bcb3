"""The images of each process in each iteration: one stream of epochs, distributed over the processes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from torch.utils.data import Sampler

from vesselseg.training.plan import TrainPlan


class StreamSampler(Sampler[list[tuple[int, int]]]):
    """Batch sampler over (epoch, index).

    The stream is one shuffled epoch after another, each order drawn from (seed, epoch). Iteration i reads the next
    ``world_size * micro_batch`` positions, and each process its own part of them: no image is missed or repeated
    within an epoch, for any number of processes. The images of an iteration depend only on the plan, the seed and i, so
    a resumed run continues with the same images in the same order. With another number of processes it continues at the
    same position in the stream.

    start: the first iteration, counted from 0.
    """

    def __init__(self, plan: TrainPlan, rank: int, seed: int, start: int = 0) -> None:
        self.plan = plan
        self.rank = rank
        self.seed = seed
        self.start = start
        self.batch_size = plan.schedule.micro_batch

    def __len__(self) -> int:
        return self.plan.iterations - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = lru_cache(maxsize=2)(self._order)
        for iteration in range(self.start, self.plan.iterations):
            first = self.plan.images_after(iteration) + self.rank * self.batch_size
            places = (divmod(first + offset, self.plan.images) for offset in range(self.batch_size))
            yield [(epoch, int(order(epoch)[place])) for epoch, place in places]

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(self.plan.images)
