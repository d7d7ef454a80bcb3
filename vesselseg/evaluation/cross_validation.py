"""Results of all folds of a cross-validation, pooled: every image is tested once, by a model not trained on it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vesselseg.evaluation.errors import EvaluationError, problem_list
from vesselseg.evaluation.leakage import leakage_warning
from vesselseg.evaluation.metrics import METRICS
from vesselseg.evaluation.result_types import Evaluation, ItemResult, ThresholdChoice
from vesselseg.evaluation.results_file import RESULTS_FILE, as_dict, write_csv
from vesselseg.evaluation.summaries import group_means, summarise_groups, summarise_items
from vesselseg.output_folder import whole_folder

_SAME = ("test_time", "post_processing", "length_unit")  # settings that all folds must share


@dataclass(frozen=True)
class FoldResults:
    """results.json of one fold."""

    path: Path
    number: int  # from 1
    of: int  # number of folds
    fingerprint: str  # of the folds
    content: dict[str, Any]  # the whole file

    @property
    def items(self) -> list[ItemResult]:
        """Items with NaN for undefined values."""
        names = [field.name for field in fields(ItemResult) if field.name != "metrics"]
        return [
            ItemResult(**{name: item[name] for name in names}, metrics={name: _number(item, name) for name in METRICS})
            for item in self.content["items"]
        ]


def pool_folds(paths: Sequence[Path], seed: int = 0) -> tuple[Evaluation, list[FoldResults]]:
    """Pool the test results of all folds: means over all images, intervals that resample groups.

    paths: results.json files or their folders, one per fold, in any order. seed: of the bootstrap. Raises
    EvaluationError, with all problems at once, for results of different cross-validations, for missing or duplicate
    folds, and for different settings.
    """
    folds = sorted((_read(Path(path)) for path in paths), key=lambda fold: fold.number)
    problems = _problems(folds)
    if problems:
        advice = "Score each fold once, with the same options: vesselseg eval MODEL --data data/NAME/folds/N"
        raise EvaluationError(problem_list("the results cannot be pooled", problems, advice))
    items = tuple(item for fold in folds for item in fold.items)
    first = folds[0].content
    grouped = any(fold.content["bootstrap"]["unit"] == "group" for fold in folds)
    means = group_means(items) if grouped else ()
    evaluation = Evaluation(
        source=Path(", ".join(dict.fromkeys(str(fold.content["source"]["path"]) for fold in folds))),
        kind="masks" if all(fold.content["source"]["kind"] == "masks" for fold in folds) else "folds",
        data=Path(first["data"]["folder"]).parent.parent,
        split="test",
        data_fingerprint=folds[0].fingerprint,
        threshold=_threshold(folds),
        curve=None,
        items=items,
        summary=summarise_items(items, seed),
        grouped=grouped,
        groups=len({item.group for item in items}),
        seed=seed,
        warnings=tuple(dict.fromkeys(warning for fold in folds for warning in fold.content["warnings"])),
        length_unit=first["length_unit"],
        test_time=first["test_time"],
        post_processing=first["post_processing"],
        per_group=means,
        group_summary=summarise_groups(means, seed) if means else {},
    )
    return evaluation, folds


def write_pooled(evaluation: Evaluation, folds: Sequence[FoldResults], out: Path, force: bool = False) -> Path:
    """Write ``out/results.json`` and ``out/results.csv``, input of vesselseg compare; return the path of the former."""
    described = [
        {
            "number": fold.number,
            "results": str(fold.path),
            "fingerprint": fold.content["data"]["fingerprint"],
            "source": fold.content["source"],
            "items": len(fold.content["items"]),
            "threshold": fold.content["threshold"]["value"],
            "means": {name: one["mean"] for name, one in fold.content["summary"].items()},
        }
        for fold in folds
    ]
    with whole_folder(out, force, RESULTS_FILE) as building:
        text = json.dumps({**as_dict(evaluation), "folds": described}, ensure_ascii=False, indent=1, allow_nan=False)
        (building / RESULTS_FILE).write_text(text + "\n", encoding="utf-8")
        write_csv(evaluation, building)
    return Path(out) / RESULTS_FILE


def _read(path: Path) -> FoldResults:
    file = path / RESULTS_FILE if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        fold = content["data"].get("fold")
        needed = [content[name] for name in ("items", "summary", "threshold", "source", "bootstrap", "warnings")]
    except FileNotFoundError:
        raise EvaluationError(
            f"{file} does not exist; expected the results that vesselseg eval wrote for a fold"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvaluationError(
            f"{file}: not a results file of vesselseg eval ({type(error).__name__}: {error})"
        ) from None
    if not fold or not needed[0]:
        raise EvaluationError(
            f"{file}: not of a fold; give vesselseg eval a fold of vesselseg folds make as "
            "--data, e.g. data/NAME/folds/1"
        )
    return FoldResults(file, fold["number"], fold["of"], fold["fingerprint"], content)


def _problems(folds: Sequence[FoldResults]) -> list[str]:
    first, problems = folds[0], []
    for fold in folds:
        if fold.fingerprint != first.fingerprint:
            problems.append(f"{fold.path}: folds {fold.fingerprint}, but {first.path} is of folds {first.fingerprint}")
        if (split := fold.content["data"]["split"]) != "test":
            problems.append(f"{fold.path}: of split {split}, expected test")
        if leakage := leakage_warning(
            fold.content["data"].get("seen_in_training") or (), fold.content["data"]["images"]
        ):
            problems.append(f"{fold.path}: {leakage}")
        problems += [
            f"{fold.path}: {name} is {fold.content.get(name)}, in {first.path} {first.content.get(name)}"
            for name in _SAME
            if fold.content.get(name) != first.content.get(name)
        ]
    counted = Counter(fold.number for fold in folds)
    problems += [f"fold {number} is given {times} times" for number, times in counted.items() if times > 1]
    missing = [str(number) for number in range(1, first.of + 1) if number not in counted]
    if missing:
        problems.append(f"of {first.of} folds, missing: {', '.join(missing)}")
    return problems


def _threshold(folds: Sequence[FoldResults]) -> ThresholdChoice:
    values = [float(fold.content["threshold"]["value"]) for fold in folds]
    listed = ", ".join(f"{value:.2f}" for value in values)
    return ThresholdChoice(sum(values) / len(values), f"mean over the folds: {listed}")


def _number(item: dict[str, Any], name: str) -> float:
    value = item["metrics"].get(name)
    return math.nan if value is None else float(value)
