"""Iterations, optimizer steps, learning rates; and which process takes which image."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.multiprocessing

from vesselseg.config.settings import Schedule
from vesselseg.training.plan import ResumeOffset, TrainPlan
from vesselseg.training.sampler import StreamSampler


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


def test_a_resumed_sampler_continues_the_whole_one() -> None:
    for rank in range(3):
        whole = list(StreamSampler(plan(10, 3, epochs=4, micro_batch=2), rank, seed=5))
        assert list(StreamSampler(plan(10, 3, epochs=4, micro_batch=2), rank, seed=5, start=3)) == whole[3:]


@pytest.mark.parametrize("sizes", [(1, 1), (4, 1), (3, 2)])
def test_with_other_processes_the_stream_continues(sizes: tuple[int, int]) -> None:
    """Two processes take 5 iterations of 2 x 1 images; then others take over, in the middle of the second epoch."""
    first = plan(8, 2, epochs=3)
    later = TrainPlan(8, sizes[0], Schedule(epochs=3, micro_batch=sizes[1]), ResumeOffset(5, 10, 1))
    seen = [sample for rank in range(2) for batch in list(StreamSampler(first, rank, 1))[:5] for sample in batch]
    for rank in range(sizes[0]):
        seen += [sample for batch in StreamSampler(later, rank, 1, start=5) for sample in batch]
    counted = Counter(item for item in seen if item[0] < 3)
    assert counted == {(epoch, index): 1 for epoch in range(3) for index in range(8)}
    assert len(seen) - sum(counted.values()) == later.filled_up
    assert later.epoch(5) == first.epoch(5) == 1.25


def test_the_learning_rate_continues_with_other_processes() -> None:
    settings = {"epochs": 1, "accumulation": 1, "lr": 1.0, "warmup_ratio": 0.1}
    whole = plan(400, 4, **settings)
    assert whole.optimizer_steps == 100
    one = TrainPlan(400, 1, Schedule(**settings), ResumeOffset(50, 200, 50))  # type: ignore[arg-type]
    assert (one.iterations, one.optimizer_steps, one.warmup_steps) == (250, 250, 40)
    for step in range(50, 100):
        assert one.learning_rate(50 + (step - 50) * 4) == pytest.approx(whole.learning_rate(step), abs=1e-9)
    early = TrainPlan(400, 8, Schedule(**settings), ResumeOffset(4, 16, 4))  # type: ignore[arg-type]
    assert [early.learning_rate(step) for step in (4, 5)] == pytest.approx([0.6, 0.8])
    assert early.learning_rate(early.optimizer_steps - 1) < 0.01


def test_a_run_that_is_done_stays_done_with_other_processes() -> None:
    done = TrainPlan(10, 3, Schedule(epochs=2, max_iters=4), ResumeOffset(9, 20, 2))
    assert (done.iterations, done.optimizer_steps) == (9, 2) and done.learning_rate(1) >= 0
    assert list(StreamSampler(done, 0, seed=0, start=9)) == [] and "9 in all" in done.describe()


def test_epochs_and_seeds_differ_in_order() -> None:
    orders = {
        tuple(index for batch in StreamSampler(plan(20, 1, epochs=2), 0, seed) for _, index in batch) for seed in (0, 1)
    }
    assert len(orders) == 2
    assert all(order[:20] != order[20:] and set(order[:20]) == set(range(20)) for order in orders)


def take_part(rank: int, world_size: int, images: int, folder: str) -> None:
    """One process: gather from all of them what they would train on."""
    torch.set_num_threads(1)  # those of before the fork are not there
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world_size)
    sampler = StreamSampler(plan(images, world_size, epochs=3), torch.distributed.get_rank(), seed=1)
    batches = list(torch.utils.data.DataLoader(Items(), batch_sampler=sampler, collate_fn=list))
    gathered: list = [None] * world_size
    torch.distributed.all_gather_object(gathered, batches)
    if rank == 0:
        torch.save(gathered, os.path.join(folder, "seen.pt"))  # noqa: PTH118
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads now and then hang (torch 2.6) or abort (2.12) while an interpreter ends


class Items(torch.utils.data.Dataset):
    """Hands back what it is asked for."""

    def __getitem__(self, item: tuple[int, int]) -> tuple[int, int]:
        return item


@pytest.mark.parametrize(("world_size", "images"), [(2, 24), (4, 22)])
def test_every_epoch_holds_each_image_once_across_processes(world_size: int, images: int, tmp_path: Path) -> None:
    arguments = (world_size, images, str(tmp_path))
    torch.multiprocessing.start_processes(
        take_part, arguments, nprocs=world_size, start_method="fork"
    )  # imports nothing
    per_process = torch.load(tmp_path / "seen.pt")
    assert len({len(batches) for batches in per_process}) == 1, "processes must run equally many iterations"
    seen = Counter(item for batches in per_process for batch in batches for item in batch)
    within = {item: count for item, count in seen.items() if item[0] < 3}
    assert within == {(epoch, index): 1 for epoch in range(3) for index in range(images)}
    assert sum(seen.values()) - sum(within.values()) < world_size
