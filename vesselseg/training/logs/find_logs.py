"""A work folder, or one log file -> TrainingLog."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vesselseg.evaluation.errors import EvaluationError, problem_list
from vesselseg.training.logs.mmengine_log import SCALARS, is_mmengine_text, read_mmengine_logs
from vesselseg.training.logs.own_log import LOG, read_own_log
from vesselseg.training.logs.training_log import TrainingLog, json_rows


def read_logs(paths: Sequence[Path]) -> list[TrainingLog]:
    """One log per path; raises one EvaluationError that lists every path that cannot be read."""
    logs, problems = [], []
    for path in paths:
        try:
            logs.append(read_log(path))
        except EvaluationError as error:
            problems.append(str(error))
    if problems:
        advice = "Name work folders of vesselseg, mmengine or xtuner."
        raise EvaluationError(problems[0] if len(problems) == 1 else problem_list("unreadable runs", problems, advice))
    return logs


def read_log(path: Path) -> TrainingLog:
    """path: a work folder, log.jsonl, scalars.json or a text log. Raises EvaluationError."""
    if not path.exists():
        raise EvaluationError(f"{path} does not exist; name the work folder of a training (--work-dir), or a log file")
    if path.is_file():
        return _read_file(path)
    if (path / LOG).is_file():
        return read_own_log(path / LOG)
    texts = [text for text in sorted((*path.glob("*.log"), *path.glob("*/*.log"))) if is_mmengine_text(text)]
    texts = texts or [text for text in sorted(path.glob("*.out"))[:1] if is_mmengine_text(text)]  # of nohup or Slurm
    scalars = sorted(one for pattern in ("", "vis_data/", "*/vis_data/") for one in path.glob(pattern + SCALARS))
    if not texts and not scalars:
        raise EvaluationError(
            f"{path}: no log of a training: expected {LOG} (vesselseg), or TIME/TIME.log or TIME/vis_data/{SCALARS} "
            "(mmengine, xtuner)"
        )
    return read_mmengine_logs(path, texts, scalars)


def _read_file(path: Path) -> TrainingLog:
    if path.suffix not in (".json", ".jsonl"):
        if not is_mmengine_text(path):
            raise EvaluationError(f"{path}: not a text log of mmengine; expected a work folder or one of its logs")
        return read_mmengine_logs(path, [path], [])
    rows, _ = json_rows(path)
    if any("kind" in row for row in rows) or not rows:
        return read_own_log(path)
    return read_mmengine_logs(path, [], [path])
