"""An evaluation -> its output folder: results.json, results.csv, panels, threshold curve and one HTML page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vesselseg.evaluation.charts import threshold_chart
from vesselseg.evaluation.evaluator import cases
from vesselseg.evaluation.metrics import EMPTY_MASK_RULE, METRIC_TABLE, METRICS
from vesselseg.evaluation.panels import choose_cases, draw_panel
from vesselseg.evaluation.results import RESULTS_FILE, versions, write_csv, write_json
from vesselseg.evaluation.scores import Evaluation, Scored
from vesselseg.evaluation.sources import PredictionSource
from vesselseg.evaluation.statistics import RESAMPLES
from vesselseg.html import jpeg_data_uri, png_data_uri, render
from vesselseg.output_folder import whole_folder

REPORT_FILE = "report.html"

LABELS = {name: metric.label for name, metric in METRIC_TABLE.items()}
MEANINGS = {name: metric.meaning for name, metric in METRIC_TABLE.items()}


@dataclass(frozen=True)
class Panel:
    """One case's picture: file below the output folder, its pixels inside the page, what stands under it."""

    file: str
    picture: str
    rank: str
    scored: Scored


def write_evaluation(evaluation: Evaluation, source: PredictionSource, out: Path, force: bool = False) -> Path:
    """Write everything into out, whole or not at all, and return the path of the HTML report.

    force: replace an earlier evaluation. Raises EvaluationError where out exists.
    """
    out = Path(out)
    with whole_folder(out, force, RESULTS_FILE) as folder:
        write_json(evaluation, folder)
        write_csv(evaluation, folder)
        panels = _write_panels(evaluation, source, folder)
        curve = _write_curve(evaluation, folder)
        page = render("evaluation.html.j2", **_context(evaluation, panels, curve))
        (folder / REPORT_FILE).write_text(page, encoding="utf-8")
    return out / REPORT_FILE


def _write_panels(evaluation: Evaluation, source: PredictionSource, folder: Path) -> dict[str, list[Panel]]:
    (folder / "panels").mkdir()
    panels: dict[str, list[Panel]] = {}
    for rank, chosen in choose_cases(evaluation.items).items():
        panels[rank] = []
        for number, case in enumerate(cases(evaluation, source, chosen), start=1):
            title = f"{rank.capitalize()} {number}: {_item_name(case.scored)}"
            picture = draw_panel(case, title, evaluation.threshold.value, binary=evaluation.kind == "masks")
            name = f"{rank}_{number}_{PurePosixPath(case.scored.image).stem}.png"
            _save(picture, folder / "panels" / name)
            panels[rank].append(Panel(f"panels/{name}", jpeg_data_uri(picture), rank, case.scored))
    return panels


def _write_curve(evaluation: Evaluation, folder: Path) -> str | None:
    """Threshold curve as threshold_curve.png and inside the page; None for masks, which have none."""
    if evaluation.kind == "masks":
        return None
    chart = threshold_chart(evaluation)
    _save(chart, folder / "threshold_curve.png")
    return png_data_uri(chart)


def _context(evaluation: Evaluation, panels: dict[str, list[Panel]], curve: str | None) -> dict[str, Any]:
    dice = [item.metrics["dice"] for item in evaluation.items]
    bars, edges = np.histogram(dice, bins=10, range=(0, 1))
    unit = "group" if evaluation.grouped else "image"
    return {
        "evaluation": evaluation,
        "images": len({item.image for item in evaluation.items}),
        "metrics": METRICS,
        "labels": LABELS,
        "meanings": MEANINGS,
        "panels": panels,
        "curve": curve,
        "bars": bars.tolist(),
        "edges": [f"{edge:.1f}" for edge in edges],
        "with_phrases": any(item.phrase for item in evaluation.items),
        "empty_mask_rule": EMPTY_MASK_RULE,
        "bootstrap": f"{RESAMPLES:,} resamples of whole {unit}s, seed {evaluation.seed}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }


def _item_name(scored: Scored) -> str:
    return f"{scored.image}, {scored.phrase}" if scored.phrase else scored.image


def _save(picture: NDArray[np.uint8], path: Path) -> None:
    Image.fromarray(picture).save(path)
