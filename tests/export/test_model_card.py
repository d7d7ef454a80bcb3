"""Evaluation results in a model card: figures, model-index, and results that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from tests.command_line import call_command
from tests.evaluation.conftest import drawn  # noqa: F401, a fixture
from tests.evaluation.drawn_data import Drawn
from tests.tiny import model_arguments, save_checkpoint, shaken_model
from vesselseg.dataset.manifest import fingerprint
from vesselseg.errors import UserError
from vesselseg.export.card_results import add_results
from vesselseg.export.convert import convert
from vesselseg.inference.model_files import weights_digest

Made = tuple[Path, Path]


@pytest.fixture
def made(tiny_base: Path, drawn: Drawn, tmp_path: Path) -> Made:  # noqa: F811
    """(exported folder, its evaluation on the test split of the data that it was trained on)."""
    checkpoint = save_checkpoint(
        shaken_model(tiny_base),
        tmp_path / "best.pth",
        model_arguments(tiny_base),
        data_fingerprint=fingerprint(drawn.folder),
    )
    model, results = tmp_path / "hf", tmp_path / "eval"
    convert(checkpoint, model, [drawn.folder / "images" / drawn.records("val")[0].image])
    arguments = (model, "--data", drawn.folder, "--threshold", "auto", "--device", "cpu", "--out", results)
    assert call_command("eval", *arguments) == 0
    return model, results


def changed(results: Path, **sections: dict[str, Any]) -> Path:
    """The same results with some values of some sections replaced."""
    content = json.loads((results / "results.json").read_text())
    path = results.parent / "changed.json"
    path.write_text(json.dumps({**content, **{name: {**content[name], **new} for name, new in sections.items()}}))
    return path


@pytest.mark.slow
def test_the_card_gets_the_results_and_keeps_the_rest(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    model, results = made
    card = model / "README.md"
    assert "Not evaluated yet" in card.read_text()
    card.write_text(card.read_text().replace("## Limits", "## Our hospital\n\nAsk Ada.\n\n## Limits"))
    assert call_command("report", "card", model, results) == 0
    assert f"card: {card}" in capsys.readouterr().out
    text = card.read_text()
    content = json.loads((results / "results.json").read_text())
    dice = content["summary"]["dice"]
    expected = f"| {dice['mean']:.3f} | {dice['low']:.3f} - {dice['high']:.3f} | {dice['median']:.3f} |"
    assert f"| Dice {expected} {dice['minimum']:.3f} |" in text
    assert "Not evaluated yet" not in text and "Ask Ada." in text and "## Intended use" in text
    assert "5 images of 3 groups (patients)." in text
    assert f"Threshold {content['threshold']['value']:.2f}: best mean Dice on the val split." in text
    low = sum(item["metrics"]["dice"] < 0.5 for item in content["items"])
    assert f"{low} of 5 images have a Dice below 0.5" in text
    assert str(model.parent) not in text  # no path of the machine

    index = {result.metric_type: result for result in ModelCard.load(card).data.eval_results}
    assert index["dice"].metric_value == pytest.approx(dice["mean"], abs=1e-4)
    assert (index["dice"].dataset_split, index["dice"].dataset_revision) == ("test", content["data"]["fingerprint"])
    assert ModelCard.load(card).data.tags == ["sa2va", "vesselseg", "medical", "angiography"]

    assert call_command("report", "card", model, results) == 0
    assert card.read_text() == text  # a second time changes nothing


@pytest.mark.slow
def test_results_of_something_else_are_refused(made: Made, tmp_path: Path) -> None:
    model, results = made
    before = (model / "README.md").read_bytes()
    refused = [
        ({"source": {"kind": "masks"}}, "a folder of masks, not of a model"),
        ({"source": {"weights": "0" * 16}}, f"weights {'0' * 16}, .* another model, or the checkpoint before"),
        ({"source": {"weights": None, "path": "elsewhere"}}, "the results are of elsewhere, not of"),
        ({"data": {"fingerprint": "0" * 16}}, f"the results are of data {'0' * 16} .*--other-data"),
        ({"data": {"split": "train"}}, "memorised"),
        ({"summary": {"dice": None}}, "not valid results of vesselseg eval"),
    ]
    for sections, reason in refused:
        with pytest.raises(UserError, match=reason):
            add_results(model, changed(results, **sections))
    with pytest.raises(UserError, match="does not exist; name the"):
        add_results(model, tmp_path / "nothing")
    with pytest.raises(UserError, match=r"README\.md does not exist"):
        add_results(tmp_path, results)
    assert (model / "README.md").read_bytes() == before


@pytest.mark.slow
def test_the_card_relates_scored_images_to_the_training_data(made: Made, tmp_path: Path) -> None:
    model, results = made
    card = add_results(model, changed(results, data={"fingerprint": "0" * 16}), other_data=True)
    assert "A different dataset than the training data." in card.read_text()
    add_results(model, changed(results, data={"split": "val"}))
    assert "the figures are optimistic" in card.read_text() and "A different dataset" not in card.read_text()
    moved = model.rename(tmp_path / "moved")  # identified by its weights
    assert "other images" in add_results(moved, results).read_text()
    (moved / "README.md").write_text("# Someone's model\n")
    text = add_results(moved, results).read_text()
    assert "The training data of the model are unknown" in text
    assert text.index("# Someone's model") < text.index("## Results")


def test_the_digest_is_that_of_the_weights_alone(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    assert weights_digest(folder) is None
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text('{"threshold": 0.4}')
    digest = weights_digest(folder)
    (folder / "config.json").write_text('{"threshold": 0.5}')
    assert weights_digest(folder) == digest
    (folder / "model.safetensors").write_bytes(b"Weights")
    assert weights_digest(folder) != digest
    assert weights_digest(folder / "model.safetensors") not in (None, digest)
