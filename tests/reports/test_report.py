"""The report as its readers find it: nothing undefined printed as a number, tables that other programs take."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path
from shutil import which

import numpy as np
import pytest

from tests.evaluation.drawn_data import Drawn
from vesselseg.dataset.manifest import read_manifest
from vesselseg.evaluation.evaluator import evaluate
from vesselseg.evaluation.metrics import METRICS
from vesselseg.evaluation.options import EvaluationOptions
from vesselseg.evaluation.prediction_sources import PredictionSource, open_predictions
from vesselseg.evaluation.result_types import Calibration, Evaluation, Reliability
from vesselseg.inference.post_processing import PostProcessing
from vesselseg.reports.evaluation_report import write_evaluation
from vesselseg.reports.paper_tables import latex, latex_text, markdown
from vesselseg.reports.report_text import (
    METRIC_GROUPS,
    UNDEFINED,
    calibration_warning,
    figure,
    interval,
    own_threshold_sentence,
)


@pytest.fixture
def measured(drawn: Drawn, probability_folder: Path, tmp_path: Path) -> tuple[Evaluation, PredictionSource]:
    """Everything that can be asked of a folder of probabilities; vessel of 10 px and more is in none of the images."""
    rows = [f"{record.image},{'a|b' if number else 'c_d'}" for number, record in enumerate(drawn.records("test"))]
    table = tmp_path / "views.csv"
    table.write_text("\n".join(["image,view_%", *rows]))
    options = EvaluationOptions(
        metric="components_error", post_processing=PostProcessing(5, 3), calibrate=True, subgroups=table
    )
    source = open_predictions(probability_folder, read_manifest(drawn.folder))
    return evaluate(drawn.folder, "test", source, "auto", options=options), source


def test_every_metric_is_in_one_group() -> None:
    assert sorted(name for names in METRIC_GROUPS.values() for name in names) == sorted(METRICS)


@pytest.mark.slow
def test_the_page_shows_all_and_nothing_undefined(
    measured: tuple[Evaluation, PredictionSource], tmp_path: Path
) -> None:
    evaluation, source = measured
    page = write_evaluation(evaluation, source, tmp_path / "out").read_text(encoding="utf-8")
    text = re.sub(r"data:image/[^\"]*", "", page)
    for part in ("Best threshold for each metric", "Calibration", "Ablations", "Subgroups", "Groups"):
        assert f"<h2>{part}</h2>" in text
    assert "holes up to 3 px filled" in text.lower()
    assert '<span class="tag">no change</span>' in text
    assert '<span class="tag warn">0 of 5</span>' in text
    visible = re.sub(r"<(style|script)>.*?</\1>", "", text, flags=re.DOTALL)
    assert not re.search(r"\b(nan|inf|None)\b", re.sub(r"<[^>]*>", " ", visible))
    assert 'title="not defined">–<' in visible
    assert "://" not in text
    assert visible.count('class="zoom"') == len(list((tmp_path / "out" / "panels").iterdir()))
    for name in ("threshold_curve.png", "reliability.png", "report.md", "table.tex"):
        assert (tmp_path / "out" / name).stat().st_size > 500


def test_markdown_tables_have_as_many_cells_as_heads(measured: tuple[Evaluation, PredictionSource]) -> None:
    text = markdown(measured[0], [("Data", "a|b")])
    blocks = [block.splitlines() for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)]
    assert len(blocks) == 6
    for lines in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
        assert re.fullmatch(r"\|(---:?\|)+", lines[1])
    assert len(blocks[0]) == 2 + len(METRICS)
    assert set(re.findall(r"\[\^(\d+)\](?!:)", text)) == set(re.findall(r"^\[\^(\d+)\]:", text, flags=re.MULTILINE))
    assert not re.search(r"\b(nan|inf|None)\b", text)
    assert r"view\_% = a\|b" in text


def test_latex_is_escaped_and_closed(measured: tuple[Evaluation, PredictionSource]) -> None:
    evaluation = replace(measured[0], source=Path("runs/my_model_50%&co"))
    text = latex(evaluation)
    assert r"my\_model\_50\%\&co" in text
    assert not re.search(r"(?<!\\)_", text)
    assert not re.search(r"(?<!\\)%", text.partition("\n")[2])
    assert text.isascii()
    rows = [line for line in text.splitlines() if line.endswith(r"\\") and not line.startswith(r"\multicolumn")]
    assert len(rows) == 1 + len(METRICS)
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {3}
    plain = re.sub(r"\\[{}]", "", text)
    assert plain.count("{") == plain.count("}")
    assert re.findall(r"\\begin\{(\w+)\}", text) == re.findall(r"\\end\{(\w+)\}", text)[::-1]


@pytest.mark.skipif(which("pdflatex") is None, reason="needs pdflatex, from texlive-latex-recommended")
@pytest.mark.parametrize("options", ["10pt", "11pt,a4paper", "10pt,twocolumn"])
def test_latex_is_set_on_a_page(measured: tuple[Evaluation, PredictionSource], tmp_path: Path, options: str) -> None:
    (tmp_path / "table.tex").write_text(latex(measured[0]), encoding="ascii")
    body = r"\usepackage{booktabs}\begin{document}A table.\input{table}\end{document}"
    (tmp_path / "paper.tex").write_text(rf"\documentclass[{options}]{{article}}{body}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    for _ in range(2):  # the second time references are known
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout[-2000:]
    assert not re.findall(r"Warning: .*|Overfull .hbox .*", run.stdout)
    assert (tmp_path / "paper.pdf").read_bytes().startswith(b"%PDF")


def test_latex_text() -> None:
    assert latex_text("a_b 5% {x} \\") == r"a\_b 5\% \{x\} \textbackslash{}"
    assert latex_text("--tta –") == r"-{}-tta \textendash{}"


def test_a_temperature_that_harms_is_told() -> None:
    before, worse, better = (_reliability(ece) for ece in (0.02, 0.05, 0.01))
    found = Calibration("test", before, before, 1.7, "val", 0.3, calibrated_everywhere=worse, calibrated_visible=better)
    warning = calibration_warning(found)
    assert warning is not None
    assert "ECE (all pixels) 0.0200 to 0.0500" in warning
    assert "probability from" not in warning
    assert calibration_warning(replace(found, calibrated_everywhere=better)) is None
    assert calibration_warning(Calibration("test", before, before)) is None


def _reliability(ece: float) -> Reliability:
    return Reliability(9, np.linspace(0, 1, 16), np.ones(15, int), np.ones(15), np.ones(15), ece, 0.1, 0.3)


def test_a_threshold_of_its_own_is_told(measured: tuple[Evaluation, PredictionSource]) -> None:
    found = replace(measured[0], test_time="flips", baseline_threshold=0.11)
    assert "0.11 without" in own_threshold_sentence(found)
    assert own_threshold_sentence(replace(found, baseline_threshold=found.threshold.value)) == ""
    assert own_threshold_sentence(measured[0]) == ""


def test_figures_as_text() -> None:
    assert figure(float("nan")) == figure(None) == interval(None, 1.0) == UNDEFINED
    assert figure(-0.00001, sign=True) == "+0.000"
    assert interval(0.1, 0.25, 2) == "0.10 to 0.25"
