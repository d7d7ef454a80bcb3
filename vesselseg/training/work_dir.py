"""The work folder of a run: whether it may be written to, and which checkpoint a run resumes from."""

from __future__ import annotations

from pathlib import Path

from vesselseg.errors import UserError
from vesselseg.training.checkpoint import find_checkpoints, weights_file
from vesselseg.training.run_log import RunLog

AUTO = "auto"
RESULTS = ("iter_*.pth", "iter_*.resume", "best.pth", "log.jsonl", RunLog.CUT_OFF)


def results_in(work_dir: Path) -> list[Path]:
    """Results of an earlier run in the folder."""
    return [path for pattern in RESULTS for path in sorted(Path(work_dir).glob(pattern))]


def resume_folder(work_dir: Path, resume: str | None) -> Path | None:
    """The iter_N.resume folder that --resume names, None for a run from the beginning.

    resume: None, `auto` (the newest complete checkpoint of the work folder, if any), an iter_N.resume folder, its
    iter_N.pth, or another run's work folder. Raises UserError if a named one does not exist or is not complete.
    """
    if resume is None:
        return None
    if resume == AUTO:
        return _newest(work_dir)
    path = Path(resume)
    folder = path.with_suffix(".resume") if path.suffix == ".pth" else path
    if folder.is_dir() and folder.suffix != ".resume":
        newest = _newest(folder)
        if newest is None:
            raise UserError(f"--resume {resume}: no complete checkpoint (iter_N.pth with iter_N.resume) in this folder")
        return newest
    if folder not in find_checkpoints(folder.parent).values():
        raise UserError(
            f"--resume {resume}: expected a complete checkpoint, that is {folder} and {weights_file(folder)}; "
            "best.pth cannot be resumed from, only started from (--cfg-options load_from=best.pth)"
        )
    return folder


def claim(work_dir: Path, *, resuming: bool, auto: bool, force: bool) -> Path | None:
    """Make sure that no earlier results are overwritten; returns the folder that --force moved them to, if any.

    auto: --resume auto found no checkpoint; a log alone is then no reason to refuse.
    Raises UserError if there are results and the run neither resumes nor may move them.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    results = results_in(work_dir)
    if resuming or not results:
        return None
    if auto and all(path.name in ("log.jsonl", RunLog.CUT_OFF) for path in results):
        return None
    if not force:
        named = ", ".join(path.name for path in results[:4])
        raise UserError(
            f"{work_dir} contains an earlier run ({named}{', ...' if len(results) > 4 else ''}). Resume it "
            "(--resume auto), choose another --work-dir, or start from the beginning and move the old results to a "
            "subfolder (--force)"
        )
    number = 1
    while (work_dir / f"previous_{number}").exists():
        number += 1
    kept = work_dir / f"previous_{number}"
    kept.mkdir()
    for path in results:
        path.rename(kept / path.name)
    return kept


def _newest(work_dir: Path) -> Path | None:
    checkpoints = find_checkpoints(work_dir)
    return checkpoints[max(checkpoints)] if checkpoints else None
