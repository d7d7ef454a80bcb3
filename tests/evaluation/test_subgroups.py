"""Subgroups by a table of the user's, and means per group."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.command_line import call_command
from tests.evaluation.drawn_data import Drawn
from vesselseg.dataset.manifest import read_manifest
from vesselseg.evaluation.errors import EvaluationError
from vesselseg.evaluation.evaluator import evaluate
from vesselseg.evaluation.options import EvaluationOptions
from vesselseg.evaluation.prediction_sources import open_predictions
from vesselseg.evaluation.result_types import Evaluation


def _evaluated(drawn: Drawn, masks: Path, table: str) -> Evaluation:
    path = drawn.folder.parent / "table.csv"
    path.write_text(table, encoding="utf-8")
    return evaluate(
        drawn.folder,
        "test",
        open_predictions(masks, read_manifest(drawn.folder)),
        options=EvaluationOptions(subgroups=path),
    )


def _dice(found: Evaluation, numbers: list[int]) -> float:
    return float(np.mean([found.items[number].metrics["dice"] for number in numbers]))


def test_every_value_of_every_column(drawn: Drawn, mask_folder: Path) -> None:
    rows = ["LAO,A", "RAO,A", "LAO,B", "RAO,", "LAO,B"]
    lines = [f"test/case{number}.png,{row}" for number, row in enumerate(rows)]
    found = _evaluated(drawn, mask_folder, "\ufeffimage,view,centre\r\n" + "\r\n".join(lines) + "\r\n\r\n")
    assert [(one.column, one.value, one.items, one.groups) for one in found.subgroups] == [
        ("view", "LAO", 3, 3),
        ("view", "RAO", 2, 2),
        ("centre", "A", 2, 1),
        ("centre", "B", 2, 2),
        ("centre", "not given", 1, 1),
    ]
    lao, _, centre_a = found.subgroups[:3]
    assert lao.summary["dice"].mean == pytest.approx(_dice(found, [0, 2, 4]))
    assert lao.summary["dice"].low is not None
    assert lao.summary["dice"].low <= lao.summary["dice"].mean <= lao.summary["dice"].high
    assert centre_a.summary["dice"].low is None  # one patient: nothing to resample
    assert not [warning for warning in found.warnings if "table.csv" in warning]


def test_groups_and_semicolons(drawn: Drawn, mask_folder: Path) -> None:
    table = "group;device\ntest patient 0;X\ntest patient 1;Y\ntest patient 2;X\nval patient 0;Y\nstranger;Y\n"
    found = _evaluated(drawn, mask_folder, table)
    assert [(one.value, one.items) for one in found.subgroups] == [("X", 3), ("Y", 2)]
    assert found.subgroups[0].summary["dice"].mean == pytest.approx(_dice(found, [0, 1, 4]))
    assert any("1 row(s) match no group of the dataset: stranger" in warning for warning in found.warnings)


def test_missing_and_unknown_names_are_listed_together(drawn: Drawn, mask_folder: Path) -> None:
    table = "image,view\ntest/case0.png,LAO\ntest/case1.png,LAO\ntest/case2.png,LAO\ntest/Case3.png,RAO\n"
    with pytest.raises(EvaluationError) as caught:
        _evaluated(drawn, mask_folder, table)
    message = str(caught.value)
    assert "names that do not match: 3" in message
    assert "test/case3.png: no row" in message
    assert "test/case4.png: no row" in message
    assert "test/Case3.png: a row, but no such image" in message


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("", "found nothing"),
        ("view,centre\nLAO,A\n", "expected a heading with image or group"),
        ("image\ntest/case0.png\n", "at least one other column"),
        ("image,view,view\na,b,c\n", "each once"),
        ("image,view\na,b\na,c\n,d\ne\n", "unusable lines: 3"),
    ],
)
def test_tables_that_cannot_be_used(drawn: Drawn, mask_folder: Path, table: str, expected: str) -> None:
    with pytest.raises(EvaluationError, match=expected):
        _evaluated(drawn, mask_folder, table)


def test_another_encoding_is_named(drawn: Drawn, mask_folder: Path) -> None:
    path = drawn.folder.parent / "table.csv"
    path.write_bytes("image,view\ntest/case0.png,Schrägaufnahme\n".encode("latin-1"))
    source = open_predictions(mask_folder, read_manifest(drawn.folder))
    with pytest.raises(EvaluationError, match="UTF-8"):
        evaluate(drawn.folder, "test", source, options=EvaluationOptions(subgroups=path))


def test_a_column_of_numbers_makes_no_subgroups(
    drawn: Drawn, mask_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vesselseg.evaluation.subgroups.MOST_VALUES", 4)
    lines = [f"test/case{number}.png,{number % 2},{number}" for number in range(5)]
    found = _evaluated(drawn, mask_folder, "\n".join(["image,view,age", *lines]))
    assert {one.column for one in found.subgroups} == {"view"}
    assert any("column age has 5 values" in warning for warning in found.warnings)


def test_groups_count_once_in_their_summary(drawn: Drawn, mask_folder: Path) -> None:
    found = evaluate(drawn.folder, "test", open_predictions(mask_folder, read_manifest(drawn.folder)))
    assert [(mean.group, mean.items) for mean in found.per_group] == [
        ("test patient 0", 2),
        ("test patient 1", 2),
        ("test patient 2", 1),
    ]
    expected = [_dice(found, numbers) for numbers in ([0, 1], [2, 3], [4])]
    assert [mean.metrics["dice"] for mean in found.per_group] == pytest.approx(expected)
    assert found.group_summary["dice"].mean == pytest.approx(np.mean(expected))
    assert found.group_summary["dice"].mean != pytest.approx(found.summary["dice"].mean)
    assert np.isnan(found.per_group[0].metrics["roc_auc"])


def test_the_tool_writes_subgroups(drawn: Drawn, mask_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = drawn.folder.parent / "table.csv", drawn.folder.parent / "out"
    path.write_text("image,view\n" + "".join(f"test/case{number}.png,v{number % 2}\n" for number in range(5)))
    arguments = [mask_folder, "--data", drawn.folder, "--out", out, "--subgroups"]
    assert call_command("eval", *arguments, path) == 0
    assert "view = v0: Dice" in capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert [(one["column"], one["value"], one["items"]) for one in results["subgroups"]] == [
        ("view", "v0", 3),
        ("view", "v1", 2),
    ]
    assert results["subgroups"][0]["summary"]["roc_auc"]["mean"] is None
    assert [one["group"] for one in results["per_group"]] == [f"test patient {number}" for number in range(3)]
    assert call_command("eval", *arguments, drawn.folder / "nothing.csv", "--force") == 2
    assert "nothing.csv" in capsys.readouterr().err
