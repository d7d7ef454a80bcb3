"""What may be overwritten, what can be resumed, what is deleted."""

from __future__ import annotations

from pathlib import Path

import pytest

from vesselseg.engine.checkpoint import RunIdentity, find_checkpoints, prune, read_run_state
from vesselseg.engine.work_dir import claim, resume_folder
from vesselseg.errors import UserError

IDENTITY = RunIdentity(2, 10, 1, 8, 0, "abc", 2)
STATE = (
    '{"run": {"progress": {"iteration": 6, "optimizer_steps": 3, "skipped": 0, "skipped_in_a_row": 0}, '
    '"best_dice": 0.5, "threshold": 0.3}, '
    '"identity": {"world_size": 2, "images": 10, "micro_batch": 1, "accumulation": 8, "seed": 0, '
    '"data_fingerprint": "abc", "zero_stage": 2}}'
)


def checkpoint(work_dir: Path, iteration: int, weights: bool = True, state: bool = True) -> Path:
    folder = work_dir / f"iter_{iteration}.resume"
    folder.mkdir(parents=True)
    if state:
        (folder / "state.json").write_text(STATE)
    if weights:
        (work_dir / f"iter_{iteration}.pth").write_bytes(b"")
    return folder


def test_auto_takes_the_newest_complete_checkpoint(tmp_path: Path) -> None:
    expected = checkpoint(tmp_path, 9)
    checkpoint(tmp_path, 4)
    checkpoint(tmp_path, 10, weights=False)
    checkpoint(tmp_path, 11, state=False)
    checkpoint(tmp_path, 12).rename(tmp_path / "iter_12.resume.unfinished")
    assert resume_folder(tmp_path, "auto") == expected


def test_auto_without_a_checkpoint_starts_anew(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").touch()
    assert resume_folder(tmp_path, "auto") is None
    assert claim(tmp_path, resuming=False, anew_by_auto=True, force=False) is None


def test_a_checkpoint_can_be_named_in_three_ways(tmp_path: Path) -> None:
    expected = checkpoint(tmp_path / "run", 9)
    for name in (expected, expected.with_suffix(".pth"), tmp_path / "run"):
        assert resume_folder(tmp_path / "other", str(name)) == expected


@pytest.mark.parametrize("name", ["best.pth", "iter_5.pth", "iter_5.resume", "nothing"])
def test_what_cannot_be_resumed_is_refused(tmp_path: Path, name: str) -> None:
    checkpoint(tmp_path, 5, weights=False)
    with pytest.raises(UserError, match="expected a complete checkpoint"):
        resume_folder(tmp_path, str(tmp_path / name))


def test_an_earlier_run_is_never_overwritten(tmp_path: Path) -> None:
    checkpoint(tmp_path, 5)
    (tmp_path / "log.jsonl").write_text("old")
    for anew_by_auto in (False, True):
        with pytest.raises(UserError, match=r"holds an earlier run \(iter_5\.pth, iter_5\.resume, log\.jsonl\)"):
            claim(tmp_path, resuming=False, anew_by_auto=anew_by_auto, force=False)
    assert claim(tmp_path, resuming=True, anew_by_auto=False, force=False) is None
    assert claim(tmp_path, resuming=False, anew_by_auto=False, force=True) == tmp_path / "previous_1"
    assert (tmp_path / "previous_1" / "log.jsonl").read_text() == "old"
    assert find_checkpoints(tmp_path) == {} and list(find_checkpoints(tmp_path / "previous_1")) == [5]


def test_the_newest_checkpoints_are_kept_and_leftovers_deleted(tmp_path: Path) -> None:
    for iteration in (2, 10, 9):
        checkpoint(tmp_path, iteration)
    (tmp_path / "best.pth").touch()
    (tmp_path / "iter_11.pth.unfinished").touch()
    prune(tmp_path, keep=2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["best.pth", "iter_10.pth", "iter_10.resume", "iter_9.pth", "iter_9.resume"]


def test_the_counters_come_back(tmp_path: Path) -> None:
    state = read_run_state(checkpoint(tmp_path, 6), IDENTITY)
    assert (state.progress.iteration, state.progress.optimizer_steps, state.best_dice) == (6, 3, 0.5)


def test_another_number_of_processes_or_other_data_is_refused_with_all_differences(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 6)
    with pytest.raises(UserError) as caught:
        read_run_state(folder, RunIdentity(4, 10, 1, 8, 0, "other", 2))
    message = str(caught.value)
    assert "world_size: 2 there, 4 now" in message and "data_fingerprint: abc there, other now" in message
    assert "images" not in message.split("\n", 1)[1].split("Start with")[0]
    assert f"load_from={tmp_path / 'iter_6.pth'}" in message
