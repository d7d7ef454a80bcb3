"""Resuming examples/hf_trainer.py: it continues like an uninterrupted run, or states why it cannot."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate.utils
import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from tests.evaluation.drawn_data import REPOSITORY, Drawn, call_tool
from vesselseg.config.settings import Schedule
from vesselseg.training.plan import TrainPlan
from vesselseg.training.sampler import StreamSampler

SCRIPT = REPOSITORY / "examples" / "hf_trainer.py"
ITERATIONS, BATCH, ACCUMULATION, SEED = 11, 2, 2, 3  # 6 optimizer steps, of which the last averages one iteration
OPTIONS = ("--lr", 3e-3, "--batch", BATCH, "--accumulation", ACCUMULATION, "--max-iters", ITERATIONS, "--epochs", 99)
KILLED_IN_ITERATION_10 = """
import os, runpy, signal, sys, torch
from transformers import Trainer
step, begun = Trainer.training_step, []
def killed(*arguments, **further):
    begun.append(1)
    if len(begun) == 10:
        os.kill(os.getpid(), signal.SIGKILL)
    torch.rand(())
    return step(*arguments, **further)
Trainer.training_step = killed
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
LOCKED = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX); print('ready'); input()"


@dataclass(frozen=True)
class Iteration:
    """Inputs and loss of one iteration. random: a draw from torch's generator, as dropout takes."""

    images: tuple[str, ...]
    loss: float
    random: float


class Runs:
    """Runs of the script with the same settings inside this process, and their iterations."""

    def __init__(self, exported: Path, drawn: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
        self.always = (exported, "--data", drawn.folder, "--seed", SEED, *OPTIONS)
        self.seen: list[Iteration] = []
        self.before: Callable[[int], None] = lambda number: None
        step = Trainer.training_step

        def recorded(trainer: Trainer, model: Any, inputs: dict[str, Any], *further: Any) -> torch.Tensor:
            self.before(len(self.seen))
            random = float(torch.rand(()))
            loss = step(trainer, model, inputs, *further)
            self.seen.append(Iteration(tuple(inputs["image_ids"]), float(loss), random))
            return loss

        monkeypatch.setattr(Trainer, "training_step", recorded)

    def __call__(self, out: Path, *further: Any) -> int:
        self.seen = []
        return call_tool("../examples/hf_trainer.py", *self.always, "--out", out, *further)

    def whole(self, out: Path) -> list[Iteration]:
        """An uninterrupted run."""
        assert self(out) == 0
        assert not checkpoints(out).exists()
        return self.seen


@pytest.fixture
def runs(exported: Path, drawn: Drawn, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runs]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield Runs(exported, drawn, monkeypatch)
    for number, handler in before.items():  # a crashed run does not restore them
        signal.signal(number, handler)


def checkpoints(out: Path) -> Path:
    return out.with_name(f"{out.name}.checkpoints")


def names(out: Path) -> list[str]:
    return sorted(path.name for path in checkpoints(out).glob("checkpoint-*"))


def assert_same(seen: list[Iteration], expected: list[Iteration]) -> None:
    assert [(one.images, one.random) for one in seen] == [(one.images, one.random) for one in expected]
    assert [one.loss for one in seen] == pytest.approx([one.loss for one in expected], abs=1e-6, rel=0)


def assert_same_result(out: Path, expected: Path) -> None:
    """The weights, and every step's loss, gradient norm and learning rate."""
    weights = load_file(out / "model.safetensors")
    for name, value in load_file(expected / "model.safetensors").items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-6, msg=name)
    rows, reference = (json.loads((folder / "trainer_state.json").read_text()) for folder in (out, expected))
    assert [row["step"] for row in rows["log_history"]] == list(range(1, rows["max_steps"] + 1))
    for row, other in zip(rows["log_history"], reference["log_history"], strict=True):
        assert row == pytest.approx(other, abs=1e-6)


@pytest.mark.process
def test_after_sigkill_no_image_is_repeated_or_skipped(runs: Runs, drawn: Drawn, tmp_path: Path) -> None:
    whole, out = runs.whole(tmp_path / "whole"), tmp_path / "out"
    plan = TrainPlan(4, 1, Schedule(epochs=99, max_iters=ITERATIONS, micro_batch=BATCH))
    stream = [index for batch in StreamSampler(plan, 0, SEED) for _, index in batch]
    records = [record.image for record in drawn.records("train")]
    assert [image for one in whole for image in one.images] == [records[index] for index in stream]

    # a start of its own: a fork sums in another order, which the weights show in their last digits
    command = [sys.executable, "-c", KILLED_IN_ITERATION_10, SCRIPT, *runs.always, "--out", out, "--save-steps", 1]
    killed = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=REPOSITORY)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert names(out) == ["checkpoint-3", "checkpoint-4"] and not out.exists()
    trained = load_file(checkpoints(out) / "checkpoint-4" / "trained.safetensors")
    assert any("lora_A" in name for name in trained) and any("seg_projector" in name for name in trained)
    assert not any("vision_model" in name or "base_layer" in name for name in trained)

    assert runs(out, "--resume") == 0
    assert_same(runs.seen, whole[8:])
    assert_same_result(out, tmp_path / "whole")
    assert not checkpoints(out).exists()


@pytest.mark.slow
def test_stopped_then_crashed_then_damaged(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = runs.whole(tmp_path / "whole"), tmp_path / "out"

    runs.before = lambda number: signal.raise_signal(signal.SIGTERM) if number == 2 else None
    assert runs(out) == 128 + signal.SIGTERM
    assert "stopped after step 2 of 6; continue with --resume" in capsys.readouterr().out
    assert_same(runs.seen, whole[:4])
    assert names(out) == ["checkpoint-2"]

    runs.before = lambda number: None
    written = Trainer._save_rng_state
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_rng_state", lambda self, to: crash(to) if to[-1] == "5" else written(self, to))
        with pytest.raises(RuntimeError, match="crashed while writing"):
            runs(out, "--resume", "--save-steps", 1)
    assert_same(runs.seen, whole[4:10])
    assert names(out) == ["checkpoint-3", "checkpoint-4"]

    damaged = checkpoints(out) / "checkpoint-4" / "optimizer.pt"
    damaged.write_bytes(damaged.read_bytes()[:-10])
    capsys.readouterr()
    assert runs(out) == 2
    assert "has a stopped run (checkpoint-4): continue it (--resume) or discard it (--force)" in capsys.readouterr().err
    assert runs(out, "--resume", "--lr", 1e-3, "--accumulation", 1) == 2
    message = capsys.readouterr().err
    assert "checkpoint-3 was written with other settings" in message
    assert "lr: 0.003 there, 0.001 now" in message and "accumulation: 2 there, 1 now" in message
    assert names(out) == ["checkpoint-3", "checkpoint-4"]

    assert runs(out, "--resume") == 0
    printed = capsys.readouterr().out
    assert "checkpoint-4 is damaged (optimizer.pt); using the one before" in printed
    assert f"continuing from {checkpoints(out) / 'checkpoint-3'}" in printed
    assert_same(runs.seen, whole[6:])
    assert_same_result(out, tmp_path / "whole")


@pytest.mark.slow
def test_a_signal_between_two_steps_is_not_lost(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It arrives just after the processes have exchanged that none was received."""
    gather, gathered = accelerate.utils.gather, []

    def then_a_signal(tensor: torch.Tensor) -> Any:
        gathered.append(gather(tensor))
        if len(gathered) == 1:
            signal.raise_signal(signal.SIGTERM)
        return gathered[-1]

    monkeypatch.setattr(accelerate.utils, "gather", then_a_signal)
    assert runs(tmp_path / "out", "--max-iters", 6) == 128 + signal.SIGTERM
    assert "stopped after step 2 of 3; continue with --resume" in capsys.readouterr().out
    assert [int(one) for one in gathered] == [0, signal.SIGTERM] and names(tmp_path / "out") == ["checkpoint-2"]


def crash(folder: str) -> None:
    raise RuntimeError(f"crashed while writing {folder}")


@pytest.mark.slow
def test_a_run_that_ended_before_its_folder_was_written(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save", lambda self, to, **_: crash(to))
        with pytest.raises(RuntimeError, match="crashed while writing"):
            runs(out, "--keep", 1, "--save-steps", 1, "--max-iters", 3)
    assert names(out) == ["checkpoint-2"]
    assert runs(out, "--resume", "--max-iters", 3) == 0
    assert runs.seen == [] and (out / "model.safetensors").is_file()
    assert len(json.loads((out / "trainer_state.json").read_text())["log_history"]) == 2


@pytest.mark.process
@pytest.mark.parametrize("wrong", ["nothing", "all damaged", "twice at once"])
def test_errors_of_resuming_are_one_line(
    wrong: str, runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    if wrong == "nothing":
        assert runs(out, "--resume") == 2
        assert f"{checkpoints(out)} has no checkpoint, so there is nothing to resume" in capsys.readouterr().err
        assert not checkpoints(out).exists()
        return
    (checkpoints(out) / "checkpoint-7").mkdir(parents=True)
    if wrong == "all damaged":
        assert runs(out, "--resume") == 2
        printed = capsys.readouterr()
        assert "checkpoint-7 is damaged (origin.json)" in printed.out and "all checkpoints are damaged" in printed.err
    else:
        command = [sys.executable, "-c", LOCKED, str(checkpoints(out) / "lock")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None and other.stdout.readline() == "ready\n"
            assert runs(out, "--force") == 2
            other.kill()
        assert "another run is writing to it" in capsys.readouterr().err
    assert names(out) == ["checkpoint-7"]
