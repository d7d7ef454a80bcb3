"""vesselseg compare: differences, intervals and tests that were worked out by hand, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.command_line import call_command
from tests.evaluation.drawn_data import REPOSITORY, Drawn
from vesselseg.evaluation.comparison import (
    Comparison,
    compare,
    lower_is_better,
    paired_metric,
    read_results,
    signed_rank,
)
from vesselseg.evaluation.errors import EvaluationError
from vesselseg.evaluation.metrics import METRICS
from vesselseg.reports.comparison_report import as_dict, most_different, table_lines, verdict

ARCHIVE = REPOSITORY / "docs/results/scratch_archive"
MODEL, FRANGI = ARCHIVE / "results_model.json", ARCHIVE / "results_frangi.json"


def item(image: str, dice: float | None, group: str = "", phrase: str = "", **other: Any) -> dict[str, Any]:
    values = {"dice": dice, "hd95": None if dice is None else 100 * (1 - dice)}
    pixels = {"height": 64, "width": 64, "truth_pixels": 500, "predicted_pixels": 500}
    return {"image": image, "phrase": phrase, "group": group or image, **pixels, "metrics": values, **other}


def results(path: Path, items: list[dict[str, Any]], fingerprint: str = "f" * 16, split: str = "test") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    data = {"fingerprint": fingerprint, "split": split}
    (path / "results.json").write_text(
        json.dumps({"format": 1, "source": {"path": str(path)}, "data": data, "items": items})
    )
    return path


def compared(*paths: Path, metric: str = "dice", common: bool = False) -> Comparison:
    return compare([read_results(path) for path in paths], metric, common)


def test_five_wins_of_different_size_by_hand(tmp_path: Path) -> None:
    a = results(tmp_path / "a", [item(f"{n}.png", 0.5 + 0.01 * n) for n in range(1, 6)])
    b = results(tmp_path / "b", [item(f"{n}.png", 0.5) for n in range(1, 6)])
    found = compared(a, b).pairs[0].chosen
    assert found.means == pytest.approx((0.53, 0.5))
    assert found.difference == pytest.approx(0.03)
    assert (found.wins, found.ties, found.losses, found.items) == (5, 0, 0, 5)
    assert found.p == pytest.approx(2 / 2**5)  # one of the 32 sign patterns on either side
    assert found.p_groups is None
    assert "not significantly" in verdict(found, "a", "b")
    ten = np.array([[0.5 + 0.01 * n, 0.5] for n in range(1, 11)])
    assert verdict(paired_metric("dice", ten, list("abcdefghij")), "a", "b").startswith(
        "a is better than b: the interval"
    )
    assert verdict(paired_metric("hd95", ten, list("abcdefghij")), "a", "b").startswith(
        "b is better than a: the interval"
    )
    both_ways = np.array([[0.6, 0.5], [0.5, 0.6], [0.7, 0.5], [0.5, 0.71]])
    assert verdict(paired_metric("dice", both_ways, list("abcd")), "a", "b").startswith("no difference between a and b")
    reverse = compared(b, a).pairs[0].chosen
    assert (reverse.wins, reverse.losses, reverse.p) == (0, 5, found.p)
    assert reverse.difference == pytest.approx(-0.03)


def test_whole_groups_are_resampled() -> None:
    """Groups A (9 images, 0.1 better) and B (1 image, 0.5): drawn AA, AB, BA, BB, each a quarter of the resamples."""
    table = np.array([[0.6, 0.5]] * 9 + [[0.9, 0.4]])
    groups = ["A"] * 9 + ["B"]
    found = paired_metric("dice", table, groups)
    assert found.difference == pytest.approx((9 * 0.1 + 0.5) / 10)
    assert (found.low, found.high) == (pytest.approx(0.1), pytest.approx(0.5))
    by_image = paired_metric("dice", table, [str(n) for n in range(10)])
    assert by_image.high is not None and by_image.high < 0.3  # 0.5 needs the one image ten times in ten draws
    assert found.p_groups == pytest.approx(0.5)  # two groups, both won: 2 of 4 sign patterns
    assert found.p is not None and found.p < 0.01
    assert paired_metric("dice", table, ["A"] * 10).low is None


def test_ties_and_nothing_but_ties() -> None:
    table = np.array([[0.5, 0.5], [0.5, 0.5 + 1e-12], [0.7, 0.6], [0.5, 0.6]])
    found = paired_metric("dice", table, list("abcd"))
    assert (found.wins, found.ties, found.losses) == (1, 2, 1)
    assert signed_rank(np.array([0.0, 1e-12])) is None
    assert paired_metric("dice", table[:1], ["a"]).p is None


def test_the_lower_distance_wins_and_missing_values_are_left_out(tmp_path: Path) -> None:
    a = results(tmp_path / "a", [item("1.png", 0.9), item("2.png", 0.8), item("3.png", None)])
    b = results(tmp_path / "b", [item("1.png", 0.7), item("2.png", 0.7), item("3.png", 0.7)])
    found = compared(a, b, metric="hd95")
    one = found.pairs[0].chosen
    assert one.means == (pytest.approx(15.0), pytest.approx(30.0))
    assert (one.items, one.wins, one.losses) == (2, 2, 0)
    assert one.p == 0.5 and verdict(one, "a", "b").startswith("a is better than b in the mean, but not significantly")
    worst = most_different(found, found.pairs[0], first_better=True)
    assert [case.key[0] for case in worst] == ["1.png", "2.png"]
    assert most_different(found, found.pairs[0], first_better=False) == []


def test_the_table_of_metrics_says_which_way_is_better() -> None:
    lower = ["hd", "hd95", "assd", "betti_0_error", "betti_1_error", "components_error"]
    assert [name for name in METRICS if lower_is_better(name)] == lower


def test_old_results_are_compared_with_new_ones_on_what_both_have(tmp_path: Path) -> None:
    """Results from before the newer metrics, and null, NaN and an unknown metric in the others."""
    old = [{**item(f"{n}.png", 0.6), "metrics": {"dice": 0.6, "iou": 0.5}} for n in range(4)]
    values = [{"dice": 0.5, "iou": float("nan"), "mcc": 0.4, "hd": None, "beauty": 1.0} for _ in range(4)]
    values[0]["iou"] = 0.3
    new = [{**one, "metrics": metrics} for one, metrics in zip(old, values)]
    found = compared(results(tmp_path / "old", old), results(tmp_path / "new", new))
    assert [(one.name, one.items) for one in found.pairs[0].metrics] == [("dice", 4), ("iou", 1)]
    itself = compared(tmp_path / "new", results(tmp_path / "again", new))
    assert [one.name for one in itself.pairs[0].metrics] == ["dice", "iou", "mcc"]
    json.dumps(as_dict(found), allow_nan=False)
    for unknown in ("hd", "beauty"):
        with pytest.raises(EvaluationError, match="not in all results; expected one of dice, iou, mcc"):
            compared(tmp_path / "new", tmp_path / "again", metric=unknown)


def test_pixels_are_not_compared_with_millimetres(tmp_path: Path) -> None:
    a, b = (results(tmp_path / name, [item(f"{n}.png", 0.6) for n in range(3)]) for name in "ab")
    content = json.loads((b / "results.json").read_text())
    (b / "results.json").write_text(json.dumps({**content, "length_unit": "mm"}))
    found = compared(a, b)
    assert [one.name for one in found.pairs[0].metrics] == ["dice"]
    assert "in mm in another" in "\n".join(table_lines(found))
    assert [one.name for one in compared(b, b).pairs[0].metrics] == ["dice", "hd95"]


def test_three_results_make_three_pairs_adjusted_by_holm(tmp_path: Path) -> None:
    levels = {"a": [0.01 * n for n in range(1, 7)], "b": [0.0] * 6, "c": [0.1, 0.1, 0.1, 0.1, 0.1, 0.1]}
    paths = [
        results(tmp_path / name, [item(f"{n}.png", 0.5 + plus * (1 + n / 7)) for n, plus in enumerate(values)])
        for name, values in levels.items()
    ]
    pairs = compared(*paths).pairs
    assert [(pair.first, pair.second) for pair in pairs] == [(0, 1), (0, 2), (1, 2)]
    assert [pair.chosen.p for pair in pairs] == [pytest.approx(2 / 64)] * 3
    assert [pair.p_adjusted for pair in pairs] == [pytest.approx(3 * 2 / 64)] * 3
    assert "p (Holm)" in "\n".join(table_lines(compared(*paths)))
    assert "p (Holm)" not in "\n".join(table_lines(compared(*paths[:2])))


def test_holm_steps_down(tmp_path: Path) -> None:
    """p of a-b: 6 of 6 won, 2/64; of a-c and b-c: larger. Holm: 3 p1, then 2 p2, never less than the one before."""
    values = {"a": [0.61, 0.62, 0.63, 0.64, 0.65, 0.66], "b": [0.5] * 6, "c": [0.7, 0.4, 0.75, 0.45, 0.8, 0.5]}
    paths = [
        results(tmp_path / name, [item(f"{n}.png", dice) for n, dice in enumerate(levels)])
        for name, levels in values.items()
    ]
    pairs = compared(*paths).pairs
    ordered = sorted(pairs, key=lambda pair: pair.chosen.p or 0)
    p = [pair.chosen.p or 0 for pair in ordered]
    adjusted = [pair.p_adjusted for pair in ordered]
    assert (ordered[0].first, ordered[0].second) == (0, 1)
    expected = [3 * p[0], max(3 * p[0], 2 * p[1]), max(3 * p[0], 2 * p[1], p[2])]
    assert adjusted == [pytest.approx(min(1.0, value)) for value in expected]


def test_other_data_is_refused_unless_only_what_both_have_is_wanted(tmp_path: Path) -> None:
    a = results(tmp_path / "a", [item(f"{n}.png", 0.6) for n in range(4)])
    shorter = results(tmp_path / "b", [item(f"{n}.png", 0.5) for n in (1, 2, 9)])
    with pytest.raises(EvaluationError, match=r"2 item\(s\) of a are not in b: 0.png, 3.png") as refused:
        compared(a, shorter)
    assert "1 item(s) of b are not in a: 9.png" in str(refused.value) and "--common" in str(refused.value)
    found = compared(a, shorter, common=True)
    assert [key[0] for key in found.keys] == ["1.png", "2.png"]
    assert found.left_out == 3 and len(found.notes) == 2
    assert found.pairs[0].chosen.difference == pytest.approx(0.1)

    other_data = results(tmp_path / "c", [item(f"{n}.png", 0.5) for n in range(4)], fingerprint="0" * 16, split="val")
    with pytest.raises(EvaluationError, match=r"fingerprint f{16}; c of split val, fingerprint 0{16}"):
        compared(a, other_data)
    relabelled = [item("0.png", 0.5), item("1.png", 0.5, truth_pixels=501), item("2.png", 0.5), item("3.png", 0.5)]
    other_truth = results(tmp_path / "d", relabelled)
    with pytest.raises(EvaluationError, match=r"1 image\(s\) have another size or truth in another result: 1.png"):
        compared(a, other_truth)
    assert len(compared(a, other_truth, common=True).keys) == 3
    nothing = results(tmp_path / "e", [item("x.png", 0.5)])
    with pytest.raises(EvaluationError, match="share no image"):
        compared(a, nothing, common=True)


def test_phrases_are_items_where_an_image_has_several(tmp_path: Path) -> None:
    two = [item("1.png", 0.6, phrase="artery"), item("1.png", 0.4, phrase="vein"), item("2.png", 0.5, phrase="vein")]
    a = results(tmp_path / "a", two)
    b = results(tmp_path / "b", [{**one, "metrics": {"dice": 0.3, "hd95": 1.0}} for one in two])
    assert compared(a, b).keys == [("1.png", "artery"), ("1.png", "vein"), ("2.png", "vein")]
    union = results(tmp_path / "c", [item("1.png", 0.5), item("2.png", 0.5)])
    with pytest.raises(EvaluationError, match=r"1.png \(artery\)"):
        compared(a, union)


def test_the_archive_s_model_against_frangi(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model's items name a phrase, those of a folder of probabilities do not."""
    assert call_command("compare", MODEL, FRANGI, "--out", tmp_path / "out") == 0
    console = capsys.readouterr().out
    values = [[one["metrics"]["dice"] for one in json.loads(path.read_text())["items"]] for path in (MODEL, FRANGI)]
    difference = np.subtract(*values)
    written = json.loads((tmp_path / "out/comparison.json").read_text())
    dice = written["pairs"][0]["metrics"][0]
    assert dice["name"] == "dice" and dice["difference"] == pytest.approx(difference.mean())
    assert [dice["wins"], dice["ties"], dice["losses"]] == [int((difference > 0).sum()), 0, int((difference < 0).sum())]
    assert dice["low"] < dice["difference"] < dice["high"]
    assert f"{difference.mean():+.4f}" in console and "19/0/1" in console
    page = (tmp_path / "out/comparison.html").read_text()
    assert re.findall(r"""(?:src|href|url\()\s*=?\s*["'](?!data:|#)""", page) == []
    assert "val_171.png" in page and "Largest advantages of results_frangi" in page
    before = (tmp_path / "out/comparison.json").read_bytes()
    assert call_command("compare", MODEL, FRANGI, "--out", tmp_path / "out", "--metric", "iou") == 2
    assert (tmp_path / "out/comparison.json").read_bytes() == before
    assert call_command("compare", MODEL, FRANGI, "--out", tmp_path / "out", "--metric", "iou", "--force") == 0


@pytest.mark.slow
def test_panels_of_evaluations_stand_side_by_side(
    drawn: Drawn, mask_folder: Path, probability_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, out in ((mask_folder, "a"), (probability_folder, "b")):
        assert call_command("eval", folder, "--data", drawn.folder, "--threshold", "0.3", "--out", tmp_path / out) == 0
    assert call_command("compare", tmp_path / "b", tmp_path / "a", "--out", tmp_path / "out") == 0
    page = (tmp_path / "out/comparison.html").read_text()
    assert page.count("data:image/jpeg") >= 2
    assert "in 3 groups" in capsys.readouterr().out and "p, groups" in page
    found = compared(tmp_path / "b", tmp_path / "a")
    assert found.grouped and found.groups == 3
    best = most_different(found, found.pairs[0], first_better=True)[0]
    assert best.values[0] == 1.0 and best.values[1] < 1.0
    assert [owner for owner, _ in best.panels] == ["b", "a"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([MODEL], "at least two"),
        ([MODEL, "{tmp}/missing"], "no results.json"),
        ([MODEL, "{tmp}/predictions"], "vesselseg eval"),
        ([MODEL, "{tmp}/notes.json"], "not a results file of vesselseg eval"),
        ([MODEL, "{tmp}/half.json"], "KeyError: 'truth_pixels'"),
        ([MODEL, FRANGI, "--metric", "beauty"], "expected one of dice, iou, precision"),
        ([MODEL, FRANGI, "--out", "{tmp}/predictions"], "exists"),
        ([MODEL, FRANGI, "--out", "{tmp}/predictions", "--force"], "no earlier output"),
    ],
)
def test_wrong_arguments_end_in_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[Any], expected: str
) -> None:
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions/predictions.json").write_text("{}")
    (tmp_path / "notes.json").write_text('{"items": 3}')
    half = [{name: value for name, value in item("1.png", 0.5).items() if name != "truth_pixels"}]
    results(tmp_path / "half", half).joinpath("results.json").rename(tmp_path / "half.json")
    assert call_command("compare", *[str(argument).replace("{tmp}", str(tmp_path)) for argument in arguments]) == 2
    assert expected in capsys.readouterr().err
