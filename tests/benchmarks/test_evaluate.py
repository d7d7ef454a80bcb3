"""benchmarks/evaluate.py: what it draws is scored by the evaluator and looks like vessels found in part."""

from __future__ import annotations

from pathlib import Path

from benchmarks.evaluate import KINDS, choose, draw
from vesselseg.dataset.manifest import read_manifest
from vesselseg.evaluation.evaluator import evaluate
from vesselseg.evaluation.prediction_sources import open_predictions


def test_drawn_predictions_are_scored(tmp_path: Path) -> None:
    data = draw(tmp_path, 4)
    choose(data, 2)
    for kind in KINDS:
        found = evaluate(data, "test", open_predictions(tmp_path / kind, read_manifest(data)))
        assert (found.kind, len(found.items), found.groups) == (kind, 2, 1)
        assert all(0.6 < item.metrics["dice"] < 0.99 and item.metrics["components_error"] > 0 for item in found.items)
        assert all(0.001 < item.truth_pixels / 512**2 < 0.2 for item in found.items)
