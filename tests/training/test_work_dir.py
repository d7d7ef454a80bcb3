"""What may be overwritten, what can be resumed, what is deleted."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from vesselseg.errors import UserError
from vesselseg.training.checkpoint import RunIdentity, RunState, Sizes, find_checkpoints, prune, read_run_state
from vesselseg.training.plan import ResumeOffset
from vesselseg.training.run_log import RunLog
from vesselseg.training.train_step import Progress
from vesselseg.training.work_dir import claim, resume_folder

IDENTITY = RunIdentity(images=10, seed=0, data_fingerprint="abc")
RUN = RunState(Progress(iteration=6, optimizer_steps=3), 0.5, 0.3, Sizes(2, 1, 2))
STATE = json.dumps({"run": asdict(RUN), "identity": asdict(IDENTITY)})


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


def test_auto_without_a_checkpoint_starts_from_the_beginning(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").touch()
    assert resume_folder(tmp_path, "auto") is None
    assert claim(tmp_path, resuming=False, auto=True, force=False) is None


def test_a_checkpoint_can_be_named_in_three_ways(tmp_path: Path) -> None:
    expected = checkpoint(tmp_path / "run", 9)
    for name in (expected, expected.with_suffix(".pth"), tmp_path / "run"):
        assert resume_folder(tmp_path / "other", str(name)) == expected


@pytest.mark.parametrize("name", ["best.pth", "iter_5.pth", "iter_5.resume", "nothing"])
def test_incomplete_checkpoints_are_refused(tmp_path: Path, name: str) -> None:
    checkpoint(tmp_path, 5, weights=False)
    with pytest.raises(UserError, match="expected a complete checkpoint"):
        resume_folder(tmp_path, str(tmp_path / name))


def test_an_earlier_run_is_never_overwritten(tmp_path: Path) -> None:
    checkpoint(tmp_path, 5)
    (tmp_path / "log.jsonl").write_text("old")
    for auto in (False, True):
        with pytest.raises(UserError, match=r"contains an earlier run \(iter_5\.pth, iter_5\.resume, log\.jsonl\)"):
            claim(tmp_path, resuming=False, auto=auto, force=False)
    assert claim(tmp_path, resuming=True, auto=False, force=False) is None
    assert claim(tmp_path, resuming=False, auto=False, force=True) == tmp_path / "previous_1"
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
    assert read_run_state(checkpoint(tmp_path, 6), IDENTITY) == RUN


def test_other_data_or_another_order_is_refused_with_all_differences(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 6)
    with pytest.raises(UserError) as caught:
        read_run_state(folder, RunIdentity(10, 1, "other"))
    message = str(caught.value)
    assert (
        "seed: 0 in the checkpoint, 1 now" in message
        and "data_fingerprint: abc in the checkpoint, other now" in message
    )
    assert "images:" not in message
    assert f"load_from={tmp_path / 'iter_6.pth'}" in message


def test_a_checkpoint_that_this_node_does_not_see_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be on a file system that all of them share"):
        read_run_state(tmp_path / "iter_6.resume", IDENTITY)


def test_a_run_continues_at_the_same_image_with_other_sizes() -> None:
    state = RunState(Progress(iteration=6, optimizer_steps=3), sizes=Sizes(2, 1, 2))
    assert not state.change_sizes(Sizes(2, 1, 2)) and state.offset == ResumeOffset()
    assert state.change_sizes(Sizes(4, 2, 1)) and state.offset == ResumeOffset(6, 12, 3)
    state.progress.iteration = 8
    assert state.images_seen == 12 + 2 * 8
    assert state.change_sizes(Sizes(1, 1, 1)) and state.offset == ResumeOffset(8, 28, 3)


def test_rows_of_a_log_that_come_again_are_set_aside(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl", active=True)
    for iteration in (1, 2, 3):
        log.write("train", iter=iteration)
    log.write("event", event="began")
    with log.path.open("a") as file:
        file.write('{"kind": "tra')
    before = log.path.read_text()
    log.cut_after(2)
    kept = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [row.get("iter") for row in kept] == [1, 2, None]
    aside = (tmp_path / RunLog.CUT_OFF).read_text()
    assert sorted((log.path.read_text() + aside).splitlines()) == sorted(before.splitlines())
    log.cut_after(2)
    assert (tmp_path / RunLog.CUT_OFF).read_text() == aside
