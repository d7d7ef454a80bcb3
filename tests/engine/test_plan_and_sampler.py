"""Iterations, optimizer steps, learning rates; and which process takes which image."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.multiprocessing

from vesselseg.engine.plan import TrainPlan
from vesselseg.engine.sampler import StreamSampler
from vesselseg.engine.settings import Schedule


def plan(images: int, world_size: int, **schedule: object) -> TrainPlan:
    return TrainPlan(images, world_size, Schedule(**schedule))  # type: ignore[arg-type]


def test_the_failed_run_takes_915_iterations() -> None:
    four_gpus = plan(1220, 4, epochs=3, accumulation=8)
    assert (four_gpus.iterations_per_epoch, four_gpus.iterations, four_gpus.optimizer_steps) == (305, 915, 115)
    assert "305 iterations per epoch, 915 in all, 115 optimizer steps (12 of warm-up)" in four_gpus.describe()
    assert "the last optimizer step averages 3 iteration(s) instead of 8" in four_gpus.describe()


def test_a_stream_that_does_not_divide_is_filled_up_once_at_its_end() -> None:
    odd = plan(10, 4, epochs=3, accumulation=1)
    assert (odd.iterations_per_epoch, odd.iterations, odd.filled_up) == (2.5, 8, 2)
    assert "2.50 iterations per epoch, 8 in all" in odd.describe() and "filled up with 2 image(s)" in odd.describe()


def test_the_learning_rate_rises_to_its_peak_and_falls_towards_zero() -> None:
    hundred = plan(100, 1, epochs=1, accumulation=1, lr=1.0, warmup_ratio=0.1)
    rates = [hundred.learning_rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[11:] == sorted(rates[11:], reverse=True) and len(set(rates[10:])) == 90
    assert rates[55] == pytest.approx(0.5) and 0 < rates[-1] < 0.001


def test_max_iters_ends_the_run_and_the_schedule() -> None:
    short = plan(100, 1, epochs=3, accumulation=4, max_iters=10)
    assert (short.iterations, short.optimizer_steps) == (10, 3)
    assert short.group_size(0) == 4 and short.group_size(8) == 2
    assert "ends the run after 0.10 epochs" in short.describe()


def test_a_resumed_sampler_goes_on_where_the_whole_one_was() -> None:
    for rank in range(3):
        whole = list(StreamSampler(plan(10, 3, epochs=4, micro_batch=2), rank, seed=5))
        assert list(StreamSampler(plan(10, 3, epochs=4, micro_batch=2), rank, seed=5, start=3)) == whole[3:]


def test_epochs_and_seeds_differ_in_order() -> None:
    orders = {
        tuple(index for batch in StreamSampler(plan(20, 1, epochs=2), 0, seed) for _, index in batch) for seed in (0, 1)
    }
    assert len(orders) == 2
    assert all(order[:20] != order[20:] and set(order[:20]) == set(range(20)) for order in orders)


def take_part(rank: int, world_size: int, images: int, folder: str) -> None:
    """One process: gather from all of them what they would train on."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world_size)
    sampler = StreamSampler(plan(images, world_size, epochs=3), torch.distributed.get_rank(), seed=1)
    batches = list(torch.utils.data.DataLoader(Items(), batch_sampler=sampler, collate_fn=list))
    gathered: list = [None] * world_size
    torch.distributed.all_gather_object(gathered, batches)
    if rank == 0:
        torch.save(gathered, os.path.join(folder, "seen.pt"))  # noqa: PTH118
    torch.distributed.barrier()  # and no destroy_process_group, which hangs now and then with torch 2.6 and gloo


class Items(torch.utils.data.Dataset):
    """Hands back what it is asked for."""

    def __getitem__(self, item: tuple[int, int]) -> tuple[int, int]:
        return item


@pytest.mark.parametrize(("world_size", "images"), [(2, 24), (4, 22)])
def test_every_epoch_holds_each_image_once_across_processes(world_size: int, images: int, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(take_part, (world_size, images, str(tmp_path)), nprocs=world_size)
    per_process = torch.load(tmp_path / "seen.pt")
    assert len({len(batches) for batches in per_process}) == 1, "processes must run equally many iterations"
    seen = Counter(item for batches in per_process for batch in batches for item in batch)
    within = {item: count for item, count in seen.items() if item[0] < 3}
    assert within == {(epoch, index): 1 for epoch in range(3) for index in range(images)}
    assert sum(seen.values()) - sum(within.values()) < world_size
