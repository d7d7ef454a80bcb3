"""Write the output folder of an evaluation: results.json and .csv, panels, charts, report.html and .md, table.tex."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vesselseg.evaluation.evaluator import predict_cases
from vesselseg.evaluation.metrics import EMPTY_MASK_RULE, METRIC_TABLE, METRICS
from vesselseg.evaluation.prediction_sources import PredictionSource
from vesselseg.evaluation.result_types import AblationEffect, Evaluation, ItemResult, Subgroup
from vesselseg.evaluation.results_file import RESULTS_FILE, write_csv, write_json
from vesselseg.output_folder import whole_folder
from vesselseg.reports import report_text
from vesselseg.reports.charts import reliability_chart, threshold_chart
from vesselseg.reports.html import jpeg_data_uri, png_data_uri, render
from vesselseg.reports.panels import draw_panel, select_cases
from vesselseg.reports.paper_tables import latex, markdown

REPORT_FILE = "report.html"
_ABLATION_METRICS = (*report_text.KEY_METRICS, "betti_0_error", "components_error")

LABELS = {name: metric.label for name, metric in METRIC_TABLE.items()}


@dataclass(frozen=True)
class Panel:
    """The panel of one case."""

    file: str  # below the output folder
    picture: str  # data URI for the page
    rank: str  # "worst", "median" or "best"
    scored: ItemResult


def write_evaluation(evaluation: Evaluation, source: PredictionSource, out: Path, force: bool = False) -> Path:
    """Write all files into out, completely or not at all; return the path of the HTML report.

    force: replace an earlier evaluation. Raises EvaluationError where out exists.
    """
    out = Path(out)
    with whole_folder(out, force, RESULTS_FILE) as folder:
        write_json(evaluation, folder)
        write_csv(evaluation, folder)
        # Read back from the file, so that page and file cannot differ.
        about = list(_about(evaluation, json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))))
        panels = _write_panels(evaluation, source, folder)
        charts = {name: png_data_uri(chart) for name, chart in _write_charts(evaluation, folder)}
        page = render("evaluation.html.j2", **_context(evaluation, panels, charts, about))
        (folder / REPORT_FILE).write_text(page, encoding="utf-8")
        (folder / "report.md").write_text(markdown(evaluation, about), encoding="utf-8")
        (folder / "table.tex").write_text(latex(evaluation), encoding="utf-8")
    return out / REPORT_FILE


def _write_panels(evaluation: Evaluation, source: PredictionSource, folder: Path) -> dict[str, list[Panel]]:
    (folder / "panels").mkdir()
    panels: dict[str, list[Panel]] = {}
    for rank, chosen in select_cases(evaluation.items).items():
        panels[rank] = []
        for number, case in enumerate(predict_cases(evaluation, source, chosen), start=1):
            item = case.scored
            title = f"{rank.capitalize()} {number}: {item.image}{f', {item.phrase}' if item.phrase else ''}"
            picture = draw_panel(case, title, evaluation.threshold.value, binary=evaluation.kind == "masks")
            name = f"{rank}_{number}_{PurePosixPath(case.scored.image).stem}.png"
            _save(picture, folder / "panels" / name)
            panels[rank].append(Panel(f"panels/{name}", jpeg_data_uri(picture), rank, case.scored))
    return panels


def _write_charts(evaluation: Evaluation, folder: Path) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Write each chart as NAME.png and yield (NAME, pixels); masks have none."""
    charts = {}
    if evaluation.kind != "masks":
        charts["threshold_curve"] = threshold_chart(evaluation)
    if evaluation.calibration is not None:
        charts["reliability"] = reliability_chart(evaluation.calibration)
    for name, chart in charts.items():
        _save(chart, folder / f"{name}.png")
        yield name, chart


def _context(
    evaluation: Evaluation, panels: dict[str, list[Panel]], charts: dict[str, str], about: list[tuple[str, str]]
) -> dict[str, Any]:
    dice = [item.metrics["dice"] for item in evaluation.items]
    bars, edges = np.histogram(dice, bins=10, range=(0, 1))
    return {
        "evaluation": evaluation,
        "text": report_text,
        "images": len({item.image for item in evaluation.items}),
        "table": METRIC_TABLE,
        "metrics": METRICS,
        "panels": panels,
        "charts": charts,
        "bars": bars.tolist(),
        "edges": [f"{edge:.1f}" for edge in edges],
        "with_phrases": report_text.item_noun(evaluation) == "items",
        "ablations": _ablations(evaluation),
        "subgroups": _subgroups(evaluation),
        "about": about,
    }


def _ablations(evaluation: Evaluation) -> dict[str, list[AblationEffect]]:
    """Effects by option, of the most important metrics."""
    found: dict[str, list[AblationEffect]] = {}
    for effect in evaluation.ablations:
        if effect.metric in _ABLATION_METRICS:
            found.setdefault(report_text.option_label(effect.option, evaluation), []).append(effect)
    return found


def _subgroups(evaluation: Evaluation) -> dict[str, list[Subgroup]]:
    columns: dict[str, list[Subgroup]] = {}
    for subgroup in evaluation.subgroups:
        columns.setdefault(subgroup.column, []).append(subgroup)
    return columns


def _about(evaluation: Evaluation, results: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(label, value) of the settings in results.json."""
    weights, fold = results["source"]["weights"], results["data"]["fold"]
    yield "Predictions", f"{evaluation.source} ({evaluation.kind}{f', weights {weights}' if weights else ''})"
    yield "Data", f"{evaluation.data}, split {evaluation.split}, fingerprint {evaluation.data_fingerprint}"
    if fold:
        yield "Fold", f"{fold['number']} of {fold['of']}, fingerprint of the folds {fold['fingerprint']}"
    groups = f"{evaluation.groups} groups" if evaluation.grouped else "no groups"
    yield "Images", f"{results['data']['images']} images, {results['data']['items']} items, {groups}"
    if any(item.phrase for item in evaluation.items):
        yield "Item", "one phrase of one image; objects that share a phrase are their union"
    else:
        yield "Item", "one image; its objects are scored as their union"
    rule = "" if evaluation.kind == "masks" else " A pixel is vessel where its probability exceeds it."
    yield "Threshold", f"{report_text.threshold_sentence(evaluation)}{rule}"
    yield "Options", "; ".join(report_text.options_used(evaluation)) or "none"
    if evaluation.baseline_threshold is not None and evaluation.test_time:
        yield "Threshold without options", f"{evaluation.baseline_threshold:.2f}"
    yield "Lengths", {"px": "in pixels: not all images have a pixel spacing", "mm": "in mm"}[evaluation.length_unit]
    yield "Empty masks", EMPTY_MASK_RULE
    yield "Intervals", report_text.bootstrap_sentence(evaluation)
    yield "Measured", results["created"]
    yield "Versions", ", ".join(f"{name} {version}" for name, version in results["versions"].items())


def _save(picture: NDArray[np.uint8], path: Path) -> None:
    Image.fromarray(picture).save(path)
